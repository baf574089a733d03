"""Table E.1-1 of PS3.15 as data, and what is done with attributes that it does not list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR
from pydicom.tag import BaseTag

_DATA = Path(__file__).resolve().parents[2] / "data"
NUMERIC_VRS = ("DS", "IS", "FL", "FD", "SL", "SS", "UL", "US")

# Free text outside the table is treated as the table treats its kin: a dummy, or cleaned. These
# hold the public names of coding schemes (PS3.3 Table 8.7-1).
_SCHEME_TEXT = {0x00080114, 0x00080115, 0x00080116, 0x0008010E}
_CLASS_UIDS = (
    "SOPClass", "TransferSyntax", "CodingSchemeUID", "ContextUID", "MappingResourceUID",
    "ContextGroupExtensionCreatorUID",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Name of the attribute.
        basic: Basic action: X, Z, D, U or a choice such as X/Z/D.
        options: Column to K or C, where an option changes the action.
    """

    name: str
    basic: str
    options: dict[str, str]

    def action(self, columns: Sequence[str]) -> str:
        """K if an option keeps the attribute, C if one cleans it, else the basic action."""
        chosen = {self.options[column] for column in columns if column in self.options}
        return "K" if "K" in chosen else "C" if "C" in chosen else self.basic


@cache
def rows() -> dict[str, Row]:
    """All lines; keys are eight hexadecimal digits in which x stands for any."""
    lines = _lines(_DATA / "ps3_15_table_e1_1.tsv")
    columns = lines[0][3:]
    found = {}
    for tag, name, basic, *cells in lines[1:]:
        options = {c: cell for c, cell in zip(columns, cells, strict=True) if cell != "-"}
        found[tag] = Row(name, basic, options)
    return found


@cache
def safe_private() -> dict[tuple[int, str, int], str]:
    """(group, private creator, last byte of the element) to the VR, of numbers worth keeping."""
    return {
        (int(group, 16), creator, int(element, 16)): vr
        for group, element, creator, vr, _ in _lines(_DATA / "safe_private.tsv")[1:]
    }


@cache
def row_of(tag: int) -> Row | None:
    """What is done with a public attribute; None keeps it (sequences: with what is in them).

    Beyond the Standard, attributes outside the table that may identify somebody by their kind are
    treated too: names of persons, dates, free text, addresses and UIDs; and unknown ones removed.
    """
    group = tag >> 16
    listed = rows().get(f"{tag:08x}")
    if listed is not None:
        return listed
    if group & 0xFF01 == 0x5000:
        return rows()["50xxxxxx"]
    if group & 0xFF01 == 0x6000:  # a plane without its data means nothing
        return Row("Overlay Plane", "X", {})
    if group <= 0x0006 or not dictionary_has_tag(tag):
        return Row(f"({group:04x},{tag & 0xFFFF:04x})", "X", {})
    return _kin(tag)


def _kin(tag: int) -> Row | None:
    """A rule for an attribute that the Standard defines, but the table does not list."""
    keyword, vr = dictionary_keyword(tag), dictionary_VR(tag)
    if vr == "PN":
        return Row(keyword, "X", {})
    if vr in ("DA", "DT", "TM"):
        return Row(keyword, "X", {"full_dates": "K", "modified_dates": "C"})
    if vr in ("LT", "ST", "UT", "UR") and tag not in _SCHEME_TEXT:
        return Row(keyword, "D", {"descriptors": "C"})
    if vr == "UI" and not any(part in keyword for part in _CLASS_UIDS):
        return Row(keyword, "U", {"uids": "K"})
    return None


@cache
def label_of(tag: int) -> str:
    """Keyword of a public attribute for the report, or its number."""
    if dictionary_has_tag(tag):
        return dictionary_keyword(tag)
    row = rows().get(f"{tag:08x}")
    return row.name.replace(" ", "") if row else str(BaseTag(tag))


def _lines(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if line and line[0] != "#"]
