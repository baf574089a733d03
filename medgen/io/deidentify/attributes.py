"""The actions of PS3.15 Annex E on the attributes of one data set, at every depth.

Elements that stay are not even decoded, so their bytes stay as they are. What is removed is
decided by tag, never by value, except where an option keeps values that prove harmless.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, UID_dictionary

from medgen.io.deidentify.keys import KeyedMap
from medgen.io.deidentify.profile import Profile
from medgen.io.deidentify.table import NUMERIC_VRS, Row, label_of, row_of, safe_private
from medgen.io.deidentify.words import is_safe

DUMMY_TEXT = "ANONYMIZED"
_TEXT_VRS = ("LO", "SH", "ST", "LT", "UT", "UC")
_DUMMIES: dict[str, Any] = {
    **dict.fromkeys((*_TEXT_VRS, "PN", "CS", "AE"), DUMMY_TEXT),
    **dict.fromkeys(("OB", "OW", "UN"), b"\0\0"),
    **dict.fromkeys(("OL", "OF"), b"\0" * 4), **dict.fromkeys(("OD", "OV"), b"\0" * 8),
    **dict.fromkeys(("FL", "FD"), 0.0), **dict.fromkeys(("SL", "SS", "SV", "UL", "US", "UV"), 0),
    "AS": "000Y", "AT": 0, "DA": "19000101", "DS": "0", "DT": "19000101000000", "IS": "0",
    "TM": "000000", "UR": "urn:anonymized",
}  # fmt: skip
# Codes must name their scheme; a private one begins with 99 (PS3.3 8.2).
_SCHEME_DESIGNATOR, _DUMMY_SCHEME = 0x00080102, "99ANON"
_PSEUDONYM_TAGS = {0x00100010, 0x00100020, 0x00120040, 0x00120042}  # patient, trial subject
_TIMEZONE = 0x00080201
_DATE = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})(.*)", re.S)
_REST_OF_DATETIME = re.compile(r"(\d{2,6}(\.\d{1,6})?)?([+-]\d{4})?")
_NUMBER_TEXT = re.compile(rb"[0-9+\-.eE\\ \0]*")
_WIDTH = {"FL": 4, "FD": 8, "SL": 4, "SS": 2, "UL": 4, "US": 2}
_DEEPEST = 64  # sequences in sequences; real ones stay below ten


class Attributes:
    """Treats data sets of one patient and counts what was done.

    Args:
        profile: What to keep.
        keyed: New UIDs.
        pseudonym: Name and number of the patient from now on.
        shift_days: By how much dates move if the profile says so.
    """

    def __init__(self, profile: Profile, keyed: KeyedMap, pseudonym: str, shift_days: int) -> None:
        self._profile = profile
        self._keyed = keyed
        self._pseudonym = pseudonym
        self._shift = timedelta(days=shift_days)
        self.done: Counter[tuple[str, str]] = Counter()  # (attribute, what) to how often

    def treat(self, dataset: Dataset, *, scrub: bool = False, depth: int = 0) -> None:
        """De-identify in place, with everything nested.

        Args:
            dataset: A whole object or an item of a sequence.
            scrub: Replace every value, for an item in a sequence that must not be empty.
            depth: How many sequences are around it.

        Raises:
            ValueError: Sequences nested deeper than any real object.
        """
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        kept_blocks: set[tuple[int, int]] = set()
        for tag in list(dataset.keys()):
            if tag.is_private:
                self._treat_private(dataset, tag, kept_blocks)
            elif tag.element == 0:  # group length, retired and wrong from now on
                del dataset[tag]
            else:
                self._treat_public(dataset, tag, scrub, depth)
        for tag in [t for t in dataset.keys() if t.is_private and t.element < 0x1000]:  # noqa: SIM118
            if (tag.group, tag.element) not in kept_blocks:
                del dataset[tag]

    def _treat_public(self, dataset: Dataset, tag: BaseTag, scrub: bool, depth: int) -> None:
        row = row_of(tag)
        vr = _vr(dataset, tag)
        if vr == "UN" or (row is None and _text_in_number(dataset, tag)):
            self._remove(dataset, tag)
        elif row is None and vr == "SQ":
            self._each_item(dataset, tag, scrub, depth)
        elif row is not None:
            self._apply(dataset, tag, vr, row, scrub, depth)
        elif scrub:
            self._replace(dataset, tag, vr, depth)

    def _apply(
        self, dataset: Dataset, tag: BaseTag, vr: str, row: Row, scrub: bool, depth: int
    ) -> None:
        action = row.action(self._profile.columns)
        if action == "K" and vr == "UI" and not _all_valid(dataset, tag):
            action = row.basic
        if action == "C" and self._clean(dataset, tag, vr):
            return
        if action == "C":
            action = row.basic
        if action == "K":
            self._count(tag, "kept by option")
            if vr == "SQ":
                self._each_item(dataset, tag, False, depth)
        elif action == "X":
            self._remove(dataset, tag)
        elif _is_empty(dataset, tag):
            return
        elif tag in _PSEUDONYM_TAGS:
            self._set(dataset, tag, vr, self._pseudonym, "replaced")
        elif vr == "SQ" and action.endswith("U*"):
            self._each_item(dataset, tag, scrub, depth)
        elif "D" in action or (scrub and action != "U"):
            self._replace(dataset, tag, vr, depth)
        elif action == "U":
            self._new_uids(dataset, tag)
        else:
            self._set(dataset, tag, vr, [] if vr == "SQ" else None, "emptied")

    def _remove(self, dataset: Dataset, tag: BaseTag) -> None:
        del dataset[tag]
        self._count(tag, "removed")

    def _set(self, dataset: Dataset, tag: BaseTag, vr: str, value: Any, what: str) -> None:
        dataset[tag] = DataElement(tag, vr, value)
        self._count(tag, what)

    def _replace(self, dataset: Dataset, tag: BaseTag, vr: str, depth: int) -> None:
        """Action D: a value that means nothing, of the right kind; unless it is empty already."""
        if _is_empty(dataset, tag):
            return
        if vr == "SQ":
            self._each_item(dataset, tag, True, depth)
            self._count(tag, "replaced")
        elif vr == "UI":
            self._new_uids(dataset, tag)
        else:
            value = _DUMMY_SCHEME if tag == _SCHEME_DESIGNATOR else _DUMMIES.get(vr, DUMMY_TEXT)
            self._set(dataset, tag, vr, value, "replaced")

    def _each_item(self, dataset: Dataset, tag: BaseTag, scrub: bool, depth: int) -> None:
        for item in dataset[tag].value or ():
            self.treat(item, scrub=scrub, depth=depth + 1)

    def _new_uids(self, dataset: Dataset, tag: BaseTag) -> None:
        """Action U. UIDs that the Standard itself defines, such as an atlas, identify nobody."""
        new = [
            old if old in UID_dictionary else self._keyed.uid(old) for old in _uids(dataset, tag)
        ]
        self._set(dataset, tag, "UI", new[0] if len(new) == 1 else new, "new UID")

    def _clean(self, dataset: Dataset, tag: BaseTag, vr: str) -> bool:
        """Action C; False if the basic action must be taken instead."""
        if vr == "TM" or tag == _TIMEZONE:
            self._count(tag, "kept by option")
            return True
        if vr in ("DA", "DT"):
            return self._edit(dataset, tag, vr, self._shifted, "shifted")
        if vr in _TEXT_VRS:
            return self._edit(dataset, tag, vr, _safe_or_none, "kept by option")
        return False

    def _edit(
        self, dataset: Dataset, tag: BaseTag, vr: str,
        change: Callable[[str], str | None], what: str,
    ) -> bool:  # fmt: skip
        """Change each value; False if one cannot be."""
        value = dataset[tag].value
        if value is None or value == "":
            return False
        values = [value] if isinstance(value, str) else list(value)
        new = [change(str(one)) for one in values]
        if any(one is None for one in new):
            return False
        self._set(dataset, tag, vr, new[0] if len(new) == 1 else new, what)
        return True

    def _shifted(self, text: str) -> str | None:
        match = _DATE.fullmatch(text.strip(" \0"))
        if match is None or not _REST_OF_DATETIME.fullmatch(match[4]):
            return None
        try:
            day = datetime(int(match[1]), int(match[2]), int(match[3])) + self._shift
        except (ValueError, OverflowError):
            return None
        return f"{day.year:04d}{day.month:02d}{day.day:02d}{match[4]}"

    def _treat_private(
        self, dataset: Dataset, tag: BaseTag, kept_blocks: set[tuple[int, int]]
    ) -> None:
        if tag.element < 0x1000:
            return  # the reservation of a block; decided when its elements are known
        block = tag.element >> 8
        if self._profile.keep_safe_private and _is_safe_number(dataset, tag, block):
            kept_blocks.add((tag.group, block))
            self.done["safe private attribute", "kept by option"] += 1
        else:
            del dataset[tag]
            self.done["private attribute", "removed"] += 1

    def _count(self, tag: BaseTag, what: str) -> None:
        self.done[label_of(tag), what] += 1


def _raw(dataset: Dataset, tag: BaseTag) -> Any:
    """The element as it is, decoded or not."""
    return dataset.get_item(tag)


def _vr(dataset: Dataset, tag: BaseTag) -> str:
    """The VR, by the dictionary where the file does not say or says unknown."""
    vr = _raw(dataset, tag).VR
    if vr == "UN" and dictionary_has_tag(tag):
        vr = dataset[tag].VR  # decoded, so that it is written with the VR that it is judged by
    elif vr is None:
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
    return str(vr)


def _is_empty(dataset: Dataset, tag: BaseTag) -> bool:
    element = _raw(dataset, tag)
    return not element.value if isinstance(element, RawDataElement) else element.is_empty


def _text_in_number(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether text stands where the Standard wants a number."""
    element = _raw(dataset, tag)
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return False
    wanted = dictionary_VR(tag)
    if wanted not in NUMERIC_VRS or (element.VR in _WIDTH and wanted in _WIDTH):
        return False
    textual = wanted in ("DS", "IS") or element.VR in (*_TEXT_VRS, "PN", "DS", "IS")
    return textual and _NUMBER_TEXT.fullmatch(element.value) is None


def _uids(dataset: Dataset, tag: BaseTag) -> list[str]:
    value = dataset[tag].value
    values = [value] if isinstance(value, str) else list(value)
    return [str(one).strip(" \0") for one in values]


def _all_valid(dataset: Dataset, tag: BaseTag) -> bool:
    return _is_empty(dataset, tag) or all(UID(one).is_valid for one in _uids(dataset, tag))


def _safe_or_none(text: str) -> str | None:
    return text if is_safe(text) else None


def _is_safe_number(dataset: Dataset, tag: BaseTag, block: int) -> bool:
    """Whether a private attribute is on the list and really holds what the list says."""
    reserved = BaseTag(tag.group << 16 | block)
    if reserved not in dataset:
        return False
    creator = _raw(dataset, reserved)
    name = creator.value
    name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name or "")
    vr = safe_private().get((tag.group, name.strip(" \0"), tag.element & 0xFF))
    if vr is None:
        return False
    element = _raw(dataset, tag)
    data = element.value
    if not isinstance(element, RawDataElement) or not isinstance(data, bytes):
        return vr == element.VR and vr in NUMERIC_VRS and not isinstance(data, bytes | str)
    if element.VR not in (None, "UN", vr):
        return False
    if vr in _WIDTH:
        return len(data) % _WIDTH[vr] == 0 and len(data) <= 64
    return len(data) <= 128 and _NUMBER_TEXT.fullmatch(data) is not None
