"""What an archive holds: every image in it, its facts, and where its outputs would go.

Labels never hold what identifies a patient: for DICOM they are keyed hashes of the UIDs. For NIfTI
and BIDS they are the file names, which are the user's own labels.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from medgen.batch.private import without_paths, without_root
from medgen.batch.shards import HIDDEN
from medgen.errors import InputError
from medgen.io.walk import Location, walk

if TYPE_CHECKING:
    from medgen.io.dicom_index import ImageSeries, SetAside

Kind = Literal["dicom", "bids", "nifti"]
NIFTI_ENDINGS = (".nii.gz", ".nii")
# So many that among 100,000 patients or studies no two share a label.
DIGITS = 16
# The anatomical suffixes of BIDS: all of them are magnetic resonance.
_MR_SUFFIXES = {
    "T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "PDT2", "angio", "T2star",
    "UNIT1", "T1map", "T2map",
}  # fmt: skip
_AWKWARD = "\\:"
_ONE_NAME = "Keep one of them: as .nii or as .nii.gz."
# A BIDS data set keeps results and originals here; only the data itself is worked on.
_NOT_BIDS_DATA = {"derivatives", "sourcedata", "code", "stimuli", "phenotype"}


@dataclass(frozen=True)
class Image:
    """One image of an archive.

    Attributes:
        label: Unique, and names no patient in DICOM.
        group: Label of its study (BIDS: session; NIfTI: the file itself).
        patient: Label of its patient or subject.
        folder: Where its outputs go, relative to the run's folder, with ``/``.
        stem: What the names of its outputs start with, when several images share a folder.
        sources: The files, or members of zips, that hold it.
        facts: What rules and models look at; includes those of :func:`medgen.io.describe`.
    """

    label: str
    group: str
    patient: str
    folder: str
    stem: str | None
    sources: tuple[Location, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """Everything in an archive.

    Attributes:
        kind: ``dicom``, ``bids`` or ``nifti``.
        images: Every image, in a fixed order.
        set_aside: Objects that are no images to work on: reason and number of objects.
        notes: What else a person should know: folders that could not be opened, foreign files.
    """

    kind: Kind
    images: list[Image]
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def kind_of(path: Path) -> Kind:
    """What sort of archive a path is.

    Raises:
        InputError: It is not there, or holds NIfTI and DICOM files side by side.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}", "Check the path.")
    if path.is_file():
        return "nifti" if path.name.lower().endswith(NIFTI_ENDINGS) else "dicom"
    if (path / "dataset_description.json").is_file():
        return "bids"
    nifti = dicom = False
    for file in walk(path):
        name = file.name.lower()
        nifti = nifti or name.endswith(NIFTI_ENDINGS)
        dicom = dicom or name.endswith((".dcm", ".ima")) or name == "dicomdir"
        if nifti and dicom:
            msg = f"{path} holds NIfTI and DICOM files side by side"
            raise InputError(msg, "Say which to work on: --input nifti or --input dicom.")
    return "nifti" if nifti else "dicom"


def discover(
    path: Path,
    kind: Kind,
    secret: bytes,
    *,
    whole_series: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Look at the header of everything below a path.

    Args:
        path: A file, a folder or, for DICOM, a zip.
        kind: How to look at it, as :func:`kind_of` says.
        secret: Keys the labels of DICOM studies, so that nobody without it can link them to UIDs.
        whole_series: Take DICOM series as they are, one entry each, whatever they hold; otherwise
            only images, and what is none is set aside.
        progress: Called with the number of files looked at.

    Raises:
        InputError: Nothing in it can be read.
    """
    if kind == "dicom":
        return _dicom(path, secret, whole_series, progress)
    return _nifti(path, kind, progress)


def _dicom(
    path: Path, secret: bytes, whole_series: bool, progress: Callable[[int], None] | None
) -> Found:
    from medgen import io

    archive = io.index_dicom(path, progress=progress)
    images = [_dicom_image(series, secret, path) for series in archive.images]
    aside = list(archive.set_aside)
    if whole_series:
        images = _joined([*images, *(_other(entry, secret) for entry in aside if entry.locations)])
        aside = [entry for entry in aside if not entry.locations]
    counts: Counter[str] = Counter()
    for entry in aside:
        counts[entry.reason] += entry.objects
    if not images and not archive.set_aside:
        raise InputError(
            f"{path} holds no readable DICOM object and no NIfTI file", "Check the path."
        )
    notes = []
    if archive.foreign:
        notes.append(f"{archive.foreign} of {archive.files} files are not DICOM")
    notes += _unreadable(archive.unreadable)
    set_aside = [{"reason": reason, "objects": n} for reason, n in sorted(counts.items())]
    return Found("dicom", sorted(images, key=lambda image: image.label), set_aside, notes)


def _dicom_image(series: ImageSeries, secret: bytes, root: Path) -> Image:
    words = (series.header.get("description"), series.header.get("protocol"))
    facts = {**series.header, **series.facts, "text": " ".join(str(w) for w in words if w)}
    if stopped := facts.get("blocking"):
        facts["blocking"] = {
            key: text and without_paths(str(text), series.locations, str(root))
            for key, text in stopped.items()
        }
    return _labelled(series, series.part, _with_sizes(facts, "dicom"), secret)


def _other(entry: SetAside, secret: bytes) -> Image:
    facts = {"format": "dicom", "modality": entry.modality, "text": entry.description}
    return _labelled(entry, 1, facts, secret)


def _labelled(
    series: ImageSeries | SetAside, part: int, facts: Mapping[str, Any], secret: bytes
) -> Image:
    """A series with labels that name nobody, and the folder for its outputs."""
    study = series.patient_key + series.study_uid
    group = f"study-{hashed(secret, 'study', study, DIGITS)}"
    number = int(re.sub(r"\D", "", series.number)[:6] or "0")
    own = hashed(secret, "series", study + series.series_uid, 8)
    label = f"{group}/series-{number:03d}-{own}" + (f"-part{part}" if part > 1 else "")
    patient = hashed(secret, "patient", series.patient_key or series.study_uid, DIGITS)
    return Image(label, group, patient, label, None, series.locations, facts)


def _joined(images: list[Image]) -> list[Image]:
    """One entry per series: its parts, and what of it would be set aside, belong together."""
    series: dict[str, Image] = {}
    for image in images:
        label = re.sub(r"-part\d+$", "", image.label)
        known = series.get(label)
        sources = (*known.sources, *image.sources) if known else image.sources
        series[label] = replace(
            known or image, label=label, folder=label, sources=tuple(sorted(set(sources), key=str))
        )
    return list(series.values())


def hashed(secret: bytes, purpose: str, text: str, digits: int) -> str:
    """Keyed hash of an identifier: the same for the same secret, meaningless without it."""
    return hmac.new(secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()[:digits]


def _nifti(path: Path, kind: Kind, progress: Callable[[int], None] | None) -> Found:
    root = path if path.is_dir() else path.parent
    unreadable: list[Path] = []
    files = [path] if path.is_file() else list(_nifti_files(path, kind, unreadable))
    if not files:
        what = "a BIDS data set without" if kind == "bids" else "a folder without"
        raise InputError(f"{path} is {what} NIfTI images", "Check the path.")
    images = []
    for count, file in enumerate(files, 1):
        relative = PurePosixPath(*map(_portable, file.relative_to(root).parts))
        images.append(
            _bids_image(file, relative, root) if kind == "bids" else _image(file, relative, root)
        )
        if progress is not None:
            progress(count)
    return Found(kind, _told_apart(images), notes=_unreadable(unreadable))


def _portable(name: str) -> str:
    r"""A name that can be a folder, a link and a line of a table: ``\ :`` and such as ``%5C``."""
    return "".join(f"%{ord(c):02X}" if c in _AWKWARD or not _storable(c) else c for c in name)


def _storable(character: str) -> bool:
    """Not a control character, and not a byte of a name in another coding than UTF-8."""
    return character.isprintable() or not (
        ord(character) < 32 or 127 <= ord(character) < 160 or 0xD800 <= ord(character) < 0xE000
    )


def _told_apart(images: list[Image]) -> list[Image]:
    """Labels are unique, also where upper and lower case are one.

    In BIDS the outputs are named after the image, so those of a second one of that name have no
    place.
    """
    seen: Counter[str] = Counter()
    unique = []
    for image in images:
        name = image.label.casefold()
        seen[name] += 1
        if seen[name] > 1:
            label = f"{image.label}-{seen[name]}"
            stopped = {"error": "another file holds an image of the same name", "hint": _ONE_NAME}
            facts = {**image.facts, "blocking": stopped} if image.stem else image.facts
            folder = image.folder if image.stem else label
            image = replace(image, label=label, folder=folder, facts=facts)
        unique.append(image)
    return unique


def _nifti_files(path: Path, kind: Kind, unreadable: list[Path]) -> list[Path]:
    files = [f for f in walk(path, unreadable) if f.name.lower().endswith(NIFTI_ENDINGS)]
    if kind == "bids":
        files = [
            file
            for file in files
            if file.relative_to(path).parts[0].startswith("sub-")
            and not _NOT_BIDS_DATA & set(file.relative_to(path).parts)
        ]
    return files


def _image(file: Path, relative: PurePosixPath, root: Path) -> Image:
    label = str(relative.with_name(stem_of(relative.name)))
    same_stem = file.with_name(stem_of(file.name) + _other_ending(file.name)).exists()
    if same_stem:  # a.nii beside a.nii.gz: both are cases
        label += "-nii" if file.name.lower().endswith(".nii") else "-niigz"
    facts = {**_described(file, root), "text": stem_of(relative.name)}
    return Image(
        label, label, str(relative.parent), label, None, (Location(file),),
        _with_sizes(facts, "nifti"),
    )  # fmt: skip


def _bids_image(file: Path, relative: PurePosixPath, root: Path) -> Image:
    stem = stem_of(relative.name)
    suffix = stem.rpartition("_")[2]
    parts = relative.parts
    session = "/".join(part for part in parts[:2] if part.startswith(("sub-", "ses-")))
    facts: dict[str, Any] = {**_described(file, root), "suffix": suffix, "text": stem}
    if suffix in _MR_SUFFIXES:
        facts["modality"] = "MR"
        facts["body_part"] = None
    return Image(
        label=str(relative.with_name(stem)),
        group=session,
        patient=parts[0],
        folder=str(relative.parent),
        stem=stem,
        sources=(Location(file),),
        facts=_with_sizes(facts, "nifti"),
    )


def _described(file: Path, root: Path) -> dict[str, Any]:
    """Header facts of a NIfTI file; one that cannot be described is a case that fails."""
    from medgen import io

    try:
        return io.describe(file)[0]
    except InputError as error:
        message = without_root(error.message, str(root))
        stopped = {"error": message, "hint": error.hint}
        return {"blocking": stopped, "shape": (), "spacing_mm": None, "frames": 1, "channels": 1}


def _with_sizes(facts: dict[str, Any], fmt: str) -> dict[str, Any]:
    """Facts with those that rules ask for and headers state in other words."""
    shape, spacing = facts.get("shape") or (), facts.get("spacing_mm")
    return {
        **facts,
        "format": fmt,
        "dims": len(shape) or None,
        "slices": min(shape) if len(shape) == 3 else None,
        "finest_mm": min(spacing) if spacing else None,
        "coarsest_mm": max(spacing) if spacing else None,
    }


def _unreadable(folders: list[Path]) -> list[str]:
    n = len(folders)
    return [f"{n} folder{'s' * (n != 1)} could not be opened"] if n else []


def stem_of(name: str) -> str:
    """A NIfTI file's name without its ending."""
    ending = next((e for e in NIFTI_ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _other_ending(name: str) -> str:
    return ".nii.gz" if name.lower().endswith(".nii") else ".nii"


def stamp_of(sources: tuple[Location, ...]) -> str:
    """Number of files, bytes and newest change of an input: cheap, to see whether it changed."""
    files = sorted({location.file for location in sources})
    try:
        states = [file.stat() for file in files]
    except OSError:
        return "unreadable"
    size = sum(state.st_size for state in states)
    newest = max(state.st_mtime_ns for state in states)
    return f"{len(sources)} objects, {size} bytes, {newest}"


def has_secret(folder: Path) -> bool:
    """Whether a run's folder holds the secret that keys its labels."""
    return (folder / HIDDEN / "secret").exists()


def secret_of(folder: Path) -> bytes:
    """The secret that keys a run's labels, made when the run's folder is first used.

    It is kept beside the ledger, readable only by its owner. Whoever deletes it cuts the last link
    between labels and UIDs; a run without its secret cannot be resumed.
    """
    path = folder / HIDDEN / "secret"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        draft = path.with_name(f"secret-{os.urandom(4).hex()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(32))
        try:
            # Of several runs that start at once, one wins; a link appears complete or not at all.
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError:  # a disk without hard links, such as exFAT and some network disks
            with suppress(FileExistsError), path.open("xb") as file:
                file.write(draft.read_bytes())
        finally:
            draft.unlink()
    secret = path.read_bytes()
    if len(secret) != 32:
        raise InputError(f"{path} is damaged", "Choose another folder with -o.")
    return secret
