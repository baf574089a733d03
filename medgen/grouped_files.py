"""Sets of files in folders, split by group into what is trained on and what is held out.

A folder holds one subfolder per condition, or the images themselves. Every image belongs to a
*group*, whatever must not be torn apart by a split: a patient, or the tile that several
augmented ones were made of. Groups come from a ``groups.csv`` beside the images (columns ``file``
and ``group``, and ``split`` with ``train`` or ``held_out`` where the split is given), or from a
pattern on the file name; else every file is a group.

The split depends on nothing but the groups' names, so every run and every evaluation shares it.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from medgen.config import Config
from medgen.errors import InputError, LeakageError
from medgen.run_record import hash_file, hash_name

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz")
GROUPS_FILE = "groups.csv"
SPLITS = ("train", "held_out")


class SetConfig(Config):
    """Where a set of images lies and how it is split."""

    folder: Path | None = Field(None, description="folder of the set")
    conditions: dict[str, str] | None = Field(
        None,
        description="name of each condition and its subfolder; left out: every subfolder is one; "
        "{}: the folder holds the images themselves",
    )
    group_pattern: str | None = Field(
        None, description="regular expression whose first (...) is the group in a file's name"
    )
    exclude: tuple[str, ...] = Field(
        (), description="files to leave out, by name without ending: broken ones, for example"
    )
    validation_fraction: float = Field(
        0.15, ge=0, lt=1, description="part of every condition's images that is never trained on"
    )
    seed: int = 0
    spatial_dims: Literal[2, 3] = Field(2, description="2 for pictures or slices, 3 for volumes")
    batch_size: int = Field(32, ge=1, description="images per batch")
    size: int | tuple[int, ...] | None = Field(
        None, description="size of the images in a batch; none: as they are stored"
    )

    @property
    def grid(self) -> tuple[int, ...] | None:
        """``size`` with a number for every axis."""
        if self.size is None:
            return None
        size = self.size if isinstance(self.size, tuple) else (self.size,) * self.spatial_dims
        if len(size) != self.spatial_dims or min(size) < 1:
            msg = f"data.size must be {self.spatial_dims} positive numbers, got {self.size}"
            raise InputError(msg)
        return size


class Item(NamedTuple):
    """One file of a set: ``condition`` counts from 0; ``labels`` is the file of its label map."""

    path: Path
    condition: int
    group: str
    labels: Path | None = None


# Finds the images (and their label maps, if any) that lie in one folder.
Finder = Callable[[Path], list[tuple[Path, Path | None]]]


def split_images(config: SetConfig) -> tuple[list[Item], list[Item]]:
    """The images to train on and those held out, of a folder of pictures or volumes.

    Raises:
        InputError: A folder, file or group is missing, or there are too few groups.
        LeakageError: A group or the same image would be on both sides.
    """
    endings = PICTURES if config.spatial_dims == 2 else VOLUMES
    return split(config, lambda folder: [(path, None) for path in files(folder, endings)])


def split(config: SetConfig, find: Finder) -> tuple[list[Item], list[Item]]:
    """Like :func:`split_images`, for whatever ``find`` takes for images."""
    items: list[Item] = []
    given: dict[str, tuple[str, Path]] = {}  # the split that a groups.csv asks for, by group
    unknown = set(config.exclude)
    for number, folder in enumerate(condition_folders(config, find).values()):
        every = find(folder)
        found = [pair for pair in every if stem(pair[0]) not in config.exclude]
        unknown -= {stem(path) for path, _ in every}
        if not found:
            deeper = [
                path.name for path in sorted(folder.iterdir()) if path.is_dir() and find(path)
            ]
            hint = f"Expected {', '.join(PICTURES)} for 2-D or {', '.join(VOLUMES)} for 3-D."
            if deeper:
                hint = f"Its subfolders {', '.join(deeper)} have some: set data.conditions to null."
            raise InputError(f"there are no images in {folder}", hint)
        rows = read_groups(folder)
        for path, labels in found:
            group, side = _group(path, rows, config.group_pattern)
            items.append(Item(path, number, group, labels))
            other, where = given.setdefault(group, (side, path))
            if side and other and side != other:
                raise LeakageError(
                    f"group {group!r} is on both sides of the split: {where.name} in {other}, "
                    f"{path.name} in {side}",
                    f"Give all files of a group the same `split` in {GROUPS_FILE}.",
                )
            if side:
                given[group] = (side, path)
    if unknown:
        msg = f"data.exclude names {', '.join(sorted(unknown))}, which {config.folder} lacks"
        raise InputError(msg, "Give names without folder and ending.")
    sides = {group: side for group, (side, _) in given.items() if side}
    held = _held_out_groups(items, sides, config.validation_fraction)
    train = [item for item in items if item.group not in held]
    held_out = [item for item in items if item.group in held]
    _check_sides(config, train, held_out, condition_names(config, find))
    return train, held_out


def condition_names(config: SetConfig, find: Finder | None = None) -> tuple[str, ...]:
    """Names of the conditions in the order of their numbers; () if the set has none."""
    folders = condition_folders(config, find)
    return tuple(folders) if "" not in folders else ()


def condition_folders(config: SetConfig, find: Finder | None = None) -> dict[str, Path]:
    """The folder of each condition; ``{"": folder}`` if there are no conditions."""
    folder = config.folder
    if folder is None:
        raise InputError("data.folder is not set", "Give it with --set data.folder=FOLDER.")
    if not folder.is_dir():
        raise InputError(
            f"there is no folder at {folder}", "Set data.folder to the folder of your images."
        )
    names = config.conditions
    if names is None:
        look = find or (lambda where: [(path, None) for path in files(where, PICTURES + VOLUMES)])
        subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and _shown(path))
        names = {path.name: path.name for path in subfolders if look(path)}
        if names and look(folder):
            raise InputError(
                f"{folder} holds images and subfolders with images ({', '.join(names)})",
                "Set data.conditions to {NAME: SUBFOLDER, ...}, or to {} for the images alone.",
            )
    missing = [sub for sub in names.values() if not (folder / sub).is_dir()]
    if missing:
        there = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise InputError(
            f"data.conditions names {', '.join(missing)}, which are no subfolders of {folder}",
            f"It has: {', '.join(there) or 'no subfolders'}.",
        )
    return {name: folder / sub for name, sub in names.items()} or {"": folder}


def files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Files with one of these endings that lie directly in a folder, sorted; hidden ones do not."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(tuple(endings)) and path.is_file() and _shown(path)
    )


def stem(path: Path) -> str:
    """The name of an image's file without the ending of its format."""
    for ending in sorted((*PICTURES, *VOLUMES, ".dcm"), key=len, reverse=True):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def read_groups(folder: Path) -> dict[str, tuple[str, str]] | None:
    """Group and side of each file of a folder by its ``groups.csv``; None without one."""
    path = folder / GROUPS_FILE
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    found: dict[str, tuple[str, str]] = {}
    for row in rows:
        name, group, side = (row.get(key) or "" for key in ("file", "group", "split"))
        if not name or not group or side not in ("", *SPLITS):
            raise InputError(
                f"{path} needs columns `file` and `group`, and `split` only with "
                f"{' or '.join(SPLITS)}; got the row {row}"
            )
        if found.setdefault(name, (group, side)) != (group, side):
            raise InputError(f"{path} lists {name} twice, with different groups or splits")
    return found


def _group(
    path: Path, rows: dict[str, tuple[str, str]] | None, pattern: str | None
) -> tuple[str, str]:
    """The group of a file, and the side of the split it was given, if any."""
    if rows is not None:
        if path.name not in rows:
            msg = f"{path.parent / GROUPS_FILE} does not list {path.name}"
            raise InputError(msg, "List every image, or remove the file to use a pattern.")
        return rows[path.name]
    if pattern is None:
        return stem(path), ""
    try:
        match = re.search(pattern, path.name)
        group = match.group(1) if match else None
    except (re.error, IndexError) as error:
        msg = f"data.group_pattern {pattern!r} must be a regular expression with one (...): {error}"
        raise InputError(msg, "For `patient7_3.png` write '^([^_]+)_'.") from error
    if not group:
        raise InputError(f"data.group_pattern {pattern!r} finds no group in {path.name}")
    return group, ""


def _held_out_groups(
    items: Sequence[Item], given: dict[str, str], fraction: float
) -> frozenset[str]:
    """Groups to hold out: in the order of their names' hashes, until every condition has enough.

    The order has nothing to do with seeds or file dates, and an image added later moves few
    groups.
    """
    held = {group for group, side in given.items() if side == "held_out"}
    members: dict[str, Counter[int]] = defaultdict(Counter)
    for item in items:
        members[item.group][item.condition] += 1
    total = sum(members.values(), Counter[int]())
    count = sum((members[group] for group in held), Counter[int]())
    for group in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if group in given:
            continue
        if any(count[number] < fraction * total[number] for number in members[group]):
            held.add(group)
            count += members[group]
    return frozenset(held)


def _check_sides(
    config: SetConfig, train: Sequence[Item], held_out: Sequence[Item], names: Sequence[str]
) -> None:
    """Every condition is on both sides, and no image is."""
    wanted = [train, held_out] if config.validation_fraction else [train]
    for number, name in enumerate(names or ("",)):
        if all(any(item.condition == number for item in side) for side in wanted):
            continue
        own = {item.group for item in (*train, *held_out) if item.condition == number}
        where = f"condition {name!r}" if name else f"{config.folder}"
        raise InputError(
            f"{where} has too few groups to split: {len(own)} "
            f"({', '.join(sorted(own)[:3])}); at least 2 are needed, one of them to hold out",
            "Add images, name smaller groups, or set data.validation_fraction to 0.",
        )
    if not held_out:
        return
    seen = {hash_contents(item.path): item.path for item in train}
    for item in held_out:
        twin = seen.get(hash_contents(item.path))
        if twin is not None:
            raise LeakageError(
                f"{item.path} is held out, but {twin}, which is trained on, is the same image",
                f"Give both the same group in {GROUPS_FILE}, or remove one.",
            )


def hash_contents(path: Path) -> str:
    """SHA-256 of an image's file, by which it is known again whatever it and its group are called.

    Raises:
        InputError: It cannot be read.
    """
    try:
        facts = path.stat()
        return _hashed(path, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


@lru_cache(maxsize=1 << 16)
def _hashed(path: Path, changed_ns: int, size: int) -> str:
    """Of a file that is asked for several times, by every check of who has seen it."""
    return hash_file(path)


def facts(train: Sequence[Item], held_out: Sequence[Item], names: Sequence[str]) -> dict[str, Any]:
    """What a set is made of, for people and for the record; groups and files only as hashes."""
    groups = sorted({item.group for item in train})
    count = Counter(item.condition for item in train)
    return {
        "images": len(train),
        "held_out_images": len(held_out),
        "groups": len(groups),
        "held_out_groups": len({item.group for item in held_out}),
        "conditions": {name: count[number] for number, name in enumerate(names)},
        "hashed_ids": [hash_name(group) for group in groups],
        "hashed_files": sorted({hash_contents(item.path) for item in train}),
    }
