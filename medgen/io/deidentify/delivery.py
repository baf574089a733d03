"""Objects one after the other into a folder, and the account of what was done to them."""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from medgen.io.deidentify.keys import KeyedMap
from medgen.io.deidentify.objects import NotDicom, Refused, Treated, treat
from medgen.io.deidentify.profile import EDITION, Profile
from medgen.io.dicom_archive import Zips
from medgen.io.dicom_files import PREAMBLE_BYTES, looks_like_dicom
from medgen.io.files import atomic_path
from medgen.io.walk import Location

NOT_DONE = (
    "Recognizable visual features, such as a face in a head scan, are not changed.",
    "Text is not erased from pixels: objects in which it is likely are set aside.",
    "Structured reports, documents, presentation states and objects without pixels are set aside.",
)


class Delivery:
    """Writes de-identified objects and counts; one bad object never stops the rest.

    Args:
        folder: Where the objects go.
        profile: What to keep.
        key: The secret; it is neither stored nor printed.
        tree: Whether to make folders for patient, study and series in ``folder``.
        overwrite: Whether files of an earlier run may be replaced.
        dry: Do everything except writing.
    """

    def __init__(
        self, folder: Path, profile: Profile, key: bytes,
        *, tree: bool, overwrite: bool = False, dry: bool = False,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._profile = profile
        self._keyed = KeyedMap(key)
        self._tree, self._overwrite, self._dry = tree, overwrite, dry
        self._digests: dict[str, bytes] = {}  # of instances written, by their new UID
        self._done: Counter[tuple[str, str]] = Counter()
        self._set_aside: dict[tuple[str, str, bool], list[int]] = {}
        self._series: Counter[tuple[str, str, str]] = Counter()
        self._warnings: Counter[str] = Counter()
        self.foreign = 0
        self.looked_at = 0

    @property
    def written(self) -> int:
        """Objects written so far."""
        return sum(self._series.values())

    @property
    def damaged(self) -> int:
        """Objects that could not be read."""
        return sum(len(where) for (_, _, bad), where in self._set_aside.items() if bad)

    def add(self, location: Location, zips: Zips) -> None:
        """De-identify the object at a place.

        Raises:
            InputError: The disk is full or the folder not writable; nothing else.
        """
        self.looked_at += 1
        try:
            treated = self._treated(location, zips)
            known = self._digests.get(treated.uid)
            digest = hashlib.sha256(treated.data).digest()
            if known is not None:
                same = "a second copy" if known == digest else "another object with the same UID"
                raise Refused(f"{same} of an object already written")
        except NotDicom:
            self.foreign += 1
            return
        except Refused as refused:
            kind = (refused.reason, refused.modality, refused.damaged)
            self._set_aside.setdefault(kind, []).append(self.looked_at)
            return
        if not self._dry:
            with atomic_path(self._path(treated), self._overwrite) as temporary:
                temporary.write_bytes(treated.data)
        self._digests[treated.uid] = digest
        self._done.update(treated.done)
        self._series[treated.pseudonym, treated.study, treated.series] += 1
        if treated.warning:
            self._warnings[treated.warning] += 1

    def report(self) -> dict[str, Any]:
        """What was done, without any old value, name or path."""
        attributes = [
            {"attribute": name, "done": what, "count": count}
            for (name, what), count in sorted(self._done.items())
        ]
        set_aside = [
            {"reason": reason, "modality": modality, "objects": len(where), "damaged": bad,
             "positions": where}
            for (reason, modality, bad), where in sorted(self._set_aside.items())
        ]  # fmt: skip
        return {
            "medgen": version("medgen"),
            "standard": f"DICOM PS3.15 {EDITION} Annex E",
            "codes": [{"code": code, "meaning": text} for code, text in self._profile.codes],
            "profile": self._profile.model_dump(mode="json"),
            "files": self.looked_at,
            "foreign": self.foreign,
            "written": self.written,
            "patients": len({patient for patient, _, _ in self._series}),
            "studies": len({(patient, study) for patient, study, _ in self._series}),
            "series": [
                {"patient": patient, "study": study, "series": series, "objects": count}
                for (patient, study, series), count in sorted(self._series.items())
            ],
            "damaged": self.damaged,
            "set_aside": set_aside,
            "allowed_although": dict(sorted(self._warnings.items())),
            "attributes": attributes,
            "not_done": list(NOT_DONE),
        }

    def _treated(self, location: Location, zips: Zips) -> Treated:
        try:
            stream = _opened(location, zips)
        except (NotDicom, Refused):
            raise
        except Exception as error:
            kind = type(error).__name__
            raise Refused(f"the file cannot be opened ({kind})", damaged=True) from None
        with stream:
            return treat(stream, self._profile, self._keyed)

    def _path(self, treated: Treated) -> Path:
        if not self._tree:
            return self._folder / treated.name
        return (
            self._folder / treated.pseudonym / f"study-{treated.study}"
            / f"series-{treated.series}" / treated.name
        )  # fmt: skip


def _opened(location: Location, zips: Zips) -> BinaryIO:
    """The file at its start, if it may be DICOM at all."""
    with zips.open(location, PREAMBLE_BYTES) as start:
        if not looks_like_dicom(start.read(PREAMBLE_BYTES)):
            raise NotDicom
    return zips.open(location)
