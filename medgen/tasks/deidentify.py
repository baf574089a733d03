"""De-identify a file, a folder or a zip of DICOM objects into a tree of new names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.io.deidentify import Delivery, Profile, random_key
from medgen.io.dicom_archive import Zips
from medgen.io.files import atomic_path
from medgen.io.walk import Location, walk
from medgen.run_record import run_record, timed
from medgen.tasks.detect_files import write_json

__all__ = ["Deidentification", "Profile", "deidentify"]

REPORT, TABLE, RUN = "deidentification.json", "deidentification.tsv", "run.json"
_LINKED = "Made with a key from a file: another run with it gives the same UIDs and pseudonyms."
_UNLINKED = "Made with a random key that is gone: another run cannot be linked to this one."


@dataclass(frozen=True)
class Deidentification:
    """What was done.

    Attributes:
        report: What ``deidentification.json`` holds; no old value, name or path.
        written: Objects written (for a dry run: that would be).
        set_aside: Objects knowingly left out.
        damaged: Objects that could not be read.
    """

    report: dict[str, Any]
    written: int
    set_aside: int
    damaged: int


def deidentify(
    source: Path,
    folder: Path,
    *,
    profile: Profile | None = None,
    key: bytes | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Deidentification:
    """De-identify every DICOM object found (PS3.15 Annex E); the source is never touched.

    Objects go to ``PATIENT/study-HASH/series-NUMBER-HASH/NUMBER-HASH.dcm`` below ``folder``, each
    complete or not there. One that is damaged or may show the patient is set aside with the
    reason, and the rest goes on.

    Args:
        source: A file, a folder (searched to its depth, zips in it too) or a zip.
        folder: Where to write; must be empty or not exist.
        profile: What to keep; default: the Basic Profile alone.
        key: The secret behind UIDs and pseudonyms; default: random, for this run only.
        overwrite: Write into a folder that is not empty, and replace files of the same name.
        dry_run: Do everything except writing.
        progress: Told the objects done and their number.

    Returns:
        What was done.

    Raises:
        InputError: The source is missing or holds no DICOM, the folders overlap, the folder is not
            empty, or the disk is full. What was finished before stays.
    """
    profile = profile or Profile()
    check_folders(source, folder, overwrite=overwrite)
    if key is None and folder.is_dir() and any(folder.rglob("*.dcm")):
        raise InputError(
            f"{folder} holds objects of an earlier run; without its key this one would give "
            "the same patients other pseudonyms",
            "Choose a new folder with -o, or give the earlier run's key with --key-file.",
        )
    timings: dict[str, float] = {}
    delivery = Delivery(
        folder, profile, key or random_key(), tree=True, overwrite=overwrite, dry=dry_run
    )
    with Zips() as zips:
        unreadable: list[Path] = []
        refused: list[str] = []
        with timed(timings, "find"):
            locations = list(_locations(source, zips, unreadable, refused))
        with timed(timings, "deidentify"):
            for number, location in enumerate(locations, 1):
                delivery.add(location, zips)
                if progress is not None:
                    progress(number, len(locations))
    report = delivery.report()
    if report["foreign"] == report["files"]:
        raise InputError(
            f"the input holds no DICOM: {report['files']} files were looked at",
            "Name a DICOM file, a folder of them or a zip.",
        )
    report = {
        "key": _LINKED if key else _UNLINKED,
        "unreadable_folders": len(unreadable),
        "refused_zips": refused,
        **report,
    }
    if not dry_run:
        _write_reports(folder, report, timings, overwrite)
    set_aside = sum(entry["objects"] for entry in report["set_aside"] if not entry["damaged"])
    damaged = delivery.damaged + len(unreadable) + len(refused)
    return Deidentification(report, delivery.written, set_aside, damaged)


def attribute_table(report: dict[str, Any]) -> str:
    """The attributes of a report, tab-separated, one a line."""
    lines = ["attribute\tdone\tcount"]
    lines += [f"{e['attribute']}\t{e['done']}\t{e['count']}" for e in report["attributes"]]
    return "\n".join(lines) + "\n"


def check_folders(
    source: Path, folder: Path, *, key_file: Path | None = None, overwrite: bool = False
) -> None:
    """Refuse what cannot work before anything is done.

    Paths of the source stay out of errors, because they may name a patient.

    Args:
        source: The input.
        folder: The output.
        key_file: Where the secret lies or will lie.
        overwrite: Whether the output folder may hold files.

    Raises:
        InputError: The source is missing, the folders overlap, the output is not empty, or the key
            would be handed on with it.
    """
    try:
        found = source.exists()
    except OSError:
        found = False
    if not found:
        raise InputError("the input does not exist", "Check the path; quote it if it has spaces.")
    inside, outside = folder.resolve(), source.resolve()
    if inside == outside or outside in inside.parents:
        raise InputError(
            "the output folder lies inside the input",
            "Choose a folder elsewhere with -o: the source is never changed.",
        )
    if key_file is not None and inside in key_file.resolve().parents:
        raise InputError(
            "the key file lies in the output folder and would be handed on with it",
            "Keep the key elsewhere: whoever has it can link pseudonyms to patients.",
        )
    if inside in outside.parents:
        raise InputError(
            "the input lies inside the output folder, which would then hold both",
            "Choose another folder with -o, so that it can be handed on as a whole.",
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o must name a folder, but {folder} is a file", "Choose another name.")
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        raise InputError(
            f"the output folder {folder} is not empty",
            "Choose a new folder with -o, or allow replacing files with --overwrite.",
        )


def _locations(
    source: Path, zips: Zips, unreadable: list[Path], refused: list[str]
) -> Iterator[Location]:
    """Every file and every member of a zip, in a fixed order."""
    for file in walk(source, unreadable) if source.is_dir() else [source]:
        if not _is_zip(file):
            yield Location(file)
            continue
        try:
            names = sorted(zips.members(file))
        except InputError as error:
            reason = error.message.replace(str(file), "a zip")
            if file == source:
                raise InputError(reason, error.hint) from None
            refused.append(reason)
            continue
        for name in names:
            last = name.rsplit("/", 1)[-1]
            if last and not last.startswith(".") and "__MACOSX" not in name:
                yield Location(file, name)


def _is_zip(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def _write_reports(
    folder: Path, report: dict[str, Any], timings: dict[str, float], overwrite: bool
) -> None:
    with atomic_path(folder / TABLE, overwrite) as temporary:
        temporary.write_text(attribute_table(report), encoding="utf-8")
    with atomic_path(folder / REPORT, overwrite) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    record = run_record(
        "deidentify INPUT -o OUT",
        inputs=[{"name": "INPUT", "files": report["files"]}],
        outputs=[folder / REPORT, folder / TABLE],
        timings=timings,
        profile=report["profile"],
        written=report["written"],
        damaged=report["damaged"],
    )
    with atomic_path(folder / RUN, overwrite) as temporary:
        write_json(temporary, record)
