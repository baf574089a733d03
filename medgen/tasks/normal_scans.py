"""The scans of a folder, whose they are, and what a model says of each: one in memory at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen import io
from medgen.devices import resolve_device
from medgen.errors import InputError, LeakageError, PackageError
from medgen.grouped_files import hash_contents, read_groups
from medgen.package import ModelPackage, ScanMaps, run_model
from medgen.run_record import hash_name
from medgen.tasks.limits import check_facts, check_scan, default_memory_gb
from medgen.tasks.paired_files import group_of, images
from medgen.tasks.running import Progress, on_device
from medgen.volume import Volume

if TYPE_CHECKING:
    from medgen.io import Location

_BIDS = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)(?:[_/]|$)")


@dataclass(frozen=True)
class Scan:
    """One image of a folder.

    Attributes:
        name: For people: the file's name from the folder on; of DICOM only numbers, as its names
            may name a patient.
        person: Whose it is, for people; of DICOM a number.
        subject: Whose it is; of DICOM a digest that is never shown.
        identifier: What is hashed to recognise it: the person, of DICOM the study (hashes of
            patients' numbers could be guessed).
        source: What :func:`medgen.io.read` takes.
        facts: Of its header, if it has been looked at.
    """

    name: str
    person: str
    subject: str
    identifier: str
    source: Path | tuple[Location, ...]
    facts: Mapping[str, Any] | None = None

    @property
    def hashed_ids(self) -> set[str]:
        """SHA-256 by which a model may know this person: of names, and of a file its contents."""
        short = self.name.rsplit("/", 1)[-1].split(".")[0]
        return {hash_name(name) for name in (self.identifier, short)} | self.contents

    @property
    def contents(self) -> set[str]:
        """SHA-256 of its file, if it is one file."""
        if isinstance(self.source, Path) and self.source.is_file():
            return {hash_contents(self.source)}
        return set()


@dataclass
class Notes:
    """What happened on the way.

    Attributes:
        skipped: Name of each scan that could not be used, and why.
        fallbacks: What was done otherwise than wished.
        device: Where the network ran.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    device: str = "cpu"


def find_scans(folder: Path, group_pattern: str | None = None) -> list[Scan]:
    """Every image of a folder, at any depth, by name; or every image series, if it holds DICOM.

    Whose a file is says the ``groups.csv`` beside it (columns ``file`` and ``group``), else
    ``group_pattern``, else ``sub-...`` in its path (BIDS); else each file is another person's.
    DICOM says it by the patient's number.

    Args:
        folder: Of the scans; or one file.
        group_pattern: Regular expression whose first (...) is the person in a file's name.

    Raises:
        InputError: There is nothing, or a pattern or ``groups.csv`` that does not fit.
    """
    found = images(folder)
    if folder.is_dir() and list(found.values()) == [folder]:
        return _series(folder)
    listed: dict[Path, Any] = {}
    scans = []
    for name, path in found.items():
        if path.parent not in listed:
            listed[path.parent] = read_groups(path.parent)
        rows, bids = listed[path.parent], _BIDS.search(name)
        if rows is not None:
            if path.name not in rows:
                raise InputError(f"the groups.csv beside {path} does not list it", "Add it.")
            subject = rows[path.name][0]
        elif group_pattern is not None or bids is None:
            subject = group_of(name, path, group_pattern)
        else:
            subject = bids[1]
        scans.append(Scan(name, subject, subject, subject, path))
    return scans


def _series(folder: Path) -> list[Scan]:
    from medgen import io

    series = io.index_dicom(folder).images
    if not series:
        raise InputError(
            f"{folder} holds no image", "Expected NIfTI, pictures or DICOM, at any depth."
        )
    studies = {uid: n for n, uid in enumerate(dict.fromkeys(s.study_uid for s in series), 1)}
    owners = [one.patient_key or one.study_uid for one in series]
    people = {owner: n for n, owner in enumerate(dict.fromkeys(owners), 1)}
    return [
        Scan(
            name=f"study {studies[one.study_uid]}, series {one.number or '?'}"
            + (f", part {one.part}" if one.part > 1 else ""),
            person=f"person {people[owner]}",
            subject=owner,
            identifier=one.study_uid,
            source=one.locations,
            facts=one.facts,
        )
        for one, owner in zip(series, owners, strict=True)
    ]


def first_header(scans: Sequence[Scan]) -> dict[str, Any]:
    """What the header of the first scan says, as :func:`medgen.io.preview`."""
    first = scans[0]
    if first.facts is not None:
        return dict(first.facts)
    assert isinstance(first.source, Path)
    return io.preview(first.source)


def refuse_known(scans: Sequence[Scan], known: Sequence[str], what: str) -> None:
    """Refuse scans of people whom the model knows.

    Args:
        scans: To be used.
        known: SHA-256 of the identifiers of known people.
        what: How the model knows them, after "the model was".

    Raises:
        LeakageError: It knows some.
    """
    seen = [scan.name for scan in scans if scan.hashed_ids & set(known)]
    if seen:
        more = f" and {len(seen) - 1} more" if len(seen) > 1 else ""
        raise LeakageError(
            f"the model was {what} {seen[0]}{more}",
            "Its scores there are not those of new people. Leave these scans out.",
        )


def run_over(
    scans: Sequence[Scan],
    package: ModelPackage,
    notes: Notes,
    *,
    device: str = "auto",
    max_memory_gb: float | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Scan, Volume, ScanMaps]]:
    """Each scan with what the model makes of it.

    Args:
        scans: Of :func:`find_scans`.
        package: The model.
        notes: Is told of scans that cannot be used; the others go on.
        device: As for :func:`medgen.detect_anomalies`.
        max_memory_gb: Scans that would need more are skipped.
        progress: Called with (done, total) scans.

    Raises:
        InputError: Two scans are the same image, or the device cannot be used.
        PackageError: The model does not work.
    """
    where = resolve_device(device)
    method = package.method()
    limit = default_memory_gb() if max_memory_gb is None else max_memory_gb
    contents: dict[bytes, str] = {}
    for number, scan in enumerate(scans, 1):
        try:
            volume = _read(scan, package, limit)
            _refuse_copy(scan, volume, contents)

            def run(on: str, volume: Volume = volume) -> ScanMaps:
                return run_model(package, volume, method=method, device=on, max_memory_gb=limit)

            maps, where, fallbacks = on_device(run, where, device)
            notes.fallbacks += [text for text in fallbacks if text not in notes.fallbacks]
        except (PackageError, LeakageError):
            raise
        except InputError as error:
            notes.skipped[scan.name] = error.message
        else:
            yield scan, volume, maps
        if progress is not None:
            progress(number, len(scans))
    notes.device = where


def _read(scan: Scan, package: ModelPackage, limit_gb: float) -> Volume:
    """Read a scan after a look at its header.

    Raises:
        InputError: It is not readable, or not one that the model takes.
    """
    from medgen import io

    facts = scan.facts
    if facts is None:
        assert isinstance(scan.source, Path)  # DICOM comes with its facts
        facts = io.preview(scan.source)
    if facts["blocking"]:
        raise InputError(facts["blocking"]["error"], facts["blocking"]["hint"])
    check_facts(facts, package.manifest, limit_gb)
    volume = io.read(scan.source)
    check_scan(volume, package.manifest)
    return volume


def _refuse_copy(scan: Scan, volume: Volume, contents: dict[bytes, str]) -> None:
    digest = hashlib.sha256(volume.voxels.tobytes()).digest()
    first = contents.setdefault(digest, scan.name)
    if first != scan.name:
        raise LeakageError(
            f"{first} and {scan.name} are the same image",
            "A copy says nothing about the next person. Remove one of them.",
        )
