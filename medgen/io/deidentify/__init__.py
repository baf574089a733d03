"""De-identifying DICOM objects after PS3.15 Annex E, one at a time.

The profile is the Basic Application Level Confidentiality Profile with its options, read from the
table of the Standard (:mod:`medgen.io.deidentify.table`). New UIDs and pseudonyms depend on the old
ones and a secret key, so that references still fit and nobody without the key can go back.
"""

from __future__ import annotations

from medgen.io.deidentify.delivery import Delivery
from medgen.io.deidentify.keys import KeyedMap, new_key, random_key, read_key
from medgen.io.deidentify.profile import EDITION, Profile

__all__ = [
    "EDITION", "Delivery", "KeyedMap", "Profile", "new_key", "random_key",
    "read_key",
]  # fmt: skip
