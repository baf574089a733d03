"""Sets of images in folders, split by group: what generative methods learn from.

A folder holds one subfolder per condition, or the images themselves. Every image belongs to a
*group*, whatever must not be torn apart by a split: a patient, or the tile that several
augmented ones were made of. Groups come from a ``groups.csv`` beside the images (columns ``file``
and ``group``, and ``split`` with ``train`` or ``held_out`` where the split is given), or from a
pattern on the file name; else every file is a group.

The split depends on nothing but the groups' names, so every run and every evaluation shares it.
Like all sources, ``source.batch(i)`` is a pure function of the settings and ``i``.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medgen.config import Config
from medgen.errors import InputError, LeakageError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz")
GROUPS_FILE = "groups.csv"
SPLITS = ("train", "held_out")
# Percentiles of a volume that become -1 and 1.
PERCENTILES = (1.0, 99.0)
# Sizes whose proportions differ by less than this are resampled without a word.
ASPECT_TOLERANCE = 0.02
# Weights of red, green and blue in grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)

Batch = dict[str, Tensor]


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


class ImagesConfig(SetConfig):
    """Settings of a set of pictures (2-D) or NIfTI volumes (3-D)."""

    channels: Literal[1, 3] | None = Field(
        None, description="1 for grey, 3 for colour; none: as they are stored"
    )
    convert: bool = Field(
        False,
        description="allow images of different sizes, proportions or modes: resample them all to "
        "`size` and turn grey into colour (or back)",
    )
    symmetries: Literal["none", "mirror", "dihedral"] = Field(
        "none",
        description="how training images are turned at random: left-right, or all eight ways "
        "where the tissue has no up and down",
    )


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
    for number, folder in enumerate(condition_folders(config, find).values()):
        found = find(folder)
        if not found:
            raise InputError(
                f"there are no images in {folder}",
                f"Expected {', '.join(PICTURES)} for 2-D or {', '.join(VOLUMES)} for 3-D.",
            )
        rows = _read_groups(folder)
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


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _read_groups(folder: Path) -> dict[str, tuple[str, str]] | None:
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
        return path.name.split(".")[0], ""
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
    seen = {_content(item.path): item.path for item in train}
    for item in held_out:
        twin = seen.get(_content(item.path))
        if twin is not None:
            raise LeakageError(
                f"{item.path} is held out, but {twin}, which is trained on, is the same image",
                f"Give both the same group in {GROUPS_FILE}, or remove one.",
            )


def _content(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_image(path: Path) -> tuple[NDArray[np.uint8], float]:
    """An image of 8 bits, and the volume of one voxel in mm3 (1 for a picture).

    A picture is ``(C, X, Y)``: columns, then rows from top to bottom, as in medgen.io. A volume is
    ``(C, X, Y, Z)``, its axes pointing right, front, up; its 1st and 99th percentile become 0 and
    255.

    Raises:
        InputError: Damaged, or a picture of more than 8 bits.
    """
    from medgen.io import read

    if path.name.lower().endswith(PICTURES):
        from medgen.io.raster import read_raster

        voxels = read_raster(path, allow_constant=True).voxels
        if voxels.dtype != np.uint8:
            raise InputError(
                f"{path} has {voxels.dtype} pixels; training takes pictures of 8 bits",
                "Save it as 8 bits, with the window you want to see.",
            )
        return voxels, 1.0
    volume = read(path)
    voxels = right_front_up(volume.voxels, volume.affine)
    low, high = np.percentile(voxels, PERCENTILES)
    scaled = (voxels.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return np.round(scaled.clip(0, 1) * 255).astype(np.uint8), volume.geometry.voxel_volume_mm3


def right_front_up(voxels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """``(C, X, Y, Z)`` with axes flipped and exchanged so that they point right, front, up."""
    from nibabel.orientations import apply_orientation, io_orientation

    if voxels.ndim != 4:
        return voxels
    order = io_orientation(affine)
    return np.stack([np.asarray(apply_orientation(channel, order)) for channel in voxels])


class Images:
    """Training images and held-out ones from a folder, kept in memory with 8 bits.

    A batch holds ``image`` ``(B, C, *spatial)`` in -1..1 and, if there are conditions,
    ``condition`` ``(B,)``.

    Attributes:
        condition_names: In the order of their numbers.
        label_names: Empty: these images have no labels.
        y_down: Whether the second axis runs downwards in an upright picture.

    Raises:
        InputError: The set is empty, damaged or mixed, or does not fit ``size`` and ``channels``.
        LeakageError: See :func:`split_images`.
    """

    Config = ImagesConfig
    label_names: tuple[str, ...] = ()

    def __init__(self, config: ImagesConfig) -> None:
        self.config = config
        self.condition_names = condition_names(config)
        self.y_down = config.spatial_dims == 2
        train, held_out = split_images(config)
        self.facts = facts(train, held_out, self.condition_names)
        images = _read_all([item.path for item in (*train, *held_out)], config)
        self.image_size, self.channels = tuple(images.shape[2:]), images.shape[1]
        if config.symmetries == "dihedral" and len(set(self.image_size[:2])) > 1:
            msg = f"data.symmetries: dihedral needs square images, got {self.image_size}"
            raise InputError(msg, "Set data.size, or symmetries: mirror.")
        conditions = torch.tensor([item.condition for item in (*train, *held_out)])
        count = len(train)
        self.training = images[:count], conditions[:count]
        # Without held-out images, the training images stand in: for pictures only.
        shown = mixed_up(count, len(images)) if held_out else mixed_up(0, count)
        self.held_out = images[shown], conditions[shown]

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``: every image once, in a random order, then again."""
        images, conditions = self.training
        config = self.config
        chosen = in_turn(config.seed, index, config.batch_size, len(images))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        shown = _turned(images[chosen], config.symmetries, generator)
        return self._batch(shown, conditions[chosen])

    def validation_batch(self, index: int) -> Batch:
        """Batch number ``index`` of held-out images, as they are."""
        images, conditions = self.held_out
        first = index * self.config.batch_size
        chosen = torch.arange(first, first + self.config.batch_size) % len(images)
        return self._batch(images[chosen], conditions[chosen])

    def _batch(self, images: Tensor, conditions: Tensor) -> Batch:
        batch = {"image": to_signed(images)}
        return batch | ({"condition": conditions} if self.condition_names else {})


def facts(train: Sequence[Item], held_out: Sequence[Item], names: Sequence[str]) -> dict[str, Any]:
    """What a set is made of, for people and for the record; groups only as hashes."""
    groups = sorted({item.group for item in train})
    count = Counter(item.condition for item in train)
    return {
        "images": len(train),
        "held_out_images": len(held_out),
        "groups": len(groups),
        "held_out_groups": len({item.group for item in held_out}),
        "conditions": {name: count[number] for number, name in enumerate(names)},
        "hashed_ids": [hashlib.sha256(group.encode()).hexdigest() for group in groups],
    }


def in_turn(seed: int, index: int, batch_size: int, count: int) -> Tensor:
    """Which of ``count`` items are in batch ``index``, if each round takes all in a new order."""
    places = torch.arange(index * batch_size, (index + 1) * batch_size)
    orders = {
        number: torch.randperm(
            count, generator=torch.Generator().manual_seed(seed * 1_000_003 + number)
        )
        for number in (places // count).unique().tolist()
    }
    return torch.stack([orders[int(place) // count][int(place) % count] for place in places])


def mixed_up(first: int, stop: int) -> Tensor:
    """The numbers from ``first`` to ``stop - 1`` in one fixed random order."""
    return first + torch.randperm(stop - first, generator=torch.Generator().manual_seed(0))


def to_signed(images: Tensor) -> Tensor:
    """0..255 to -1..1."""
    return images.float() / 127.5 - 1


def _turned(images: Tensor, symmetries: str, generator: torch.Generator) -> Tensor:
    """Each image mirrored, or turned in one of eight ways, at random."""
    if symmetries == "none":
        return images
    axes = (2,) if symmetries == "mirror" else (2, 3)
    shape = (len(images), *[1] * (images.ndim - 1))
    for axis in axes:
        chosen = torch.rand(shape, generator=generator) < 0.5
        images = torch.where(chosen, images.flip(axis), images)
    if symmetries == "dihedral":
        chosen = torch.rand(shape, generator=generator) < 0.5
        images = torch.where(chosen, images.transpose(2, 3), images)
    return images


def _read_all(paths: Sequence[Path], config: ImagesConfig) -> Tensor:
    """All images ``(N, C, *spatial)`` uint8, of one size and mode."""
    first, _ = read_image(paths[0])
    size, channels = config.grid or first.shape[1:], config.channels or len(first)
    images = torch.empty((len(paths), channels, *size), dtype=torch.uint8)
    for number, path in enumerate(paths):
        image = first if number == 0 else read_image(path)[0]
        if not config.convert:
            _require_alike(paths[0], first, path, image)
            _require_fit(path, image, size, channels)
        shown = resampled(with_channels(torch.from_numpy(image), channels), size)
        images[number] = shown
    return images


def _require_alike(path: Path, image: NDArray[Any], other: Path, found: NDArray[Any]) -> None:
    """Refuse images of two sizes or modes in one set."""
    if image.shape == found.shape:
        return
    modes = {1: "grey", 3: "RGB"}
    raise InputError(
        f"the images differ: {path} is {_by(image.shape[1:])} {modes.get(len(image), '')}, "
        f"{other} is {_by(found.shape[1:])} {modes.get(len(found), '')}",
        "Crop or save them alike, or set data.convert to true to resample all to data.size and to "
        "turn grey into colour (or back), as data.channels says.",
    )


def _require_fit(path: Path, image: NDArray[Any], size: tuple[int, ...], channels: int) -> None:
    """Refuse to distort or recolour unless told to."""
    if len(image) != channels:
        raise InputError(
            f"{path} has {len(image)} channels, but {channels} are wanted",
            f"Set config.channels to {len(image)}, or data.convert to true.",
        )
    zoom = [new / old for new, old in zip(size, image.shape[1:], strict=True)]
    if max(zoom) > (1 + ASPECT_TOLERANCE) * min(zoom):
        raise InputError(
            f"{path} is {_by(image.shape[1:])}, which would be distorted to {_by(size)}",
            "Choose a size of the same proportions, or set data.convert to true.",
        )


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Grey ``(1, ...)`` repeated into colour, or colour ``(3, ...)`` weighted into grey."""
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, *image.shape[1:])
    weights = torch.tensor(LUMA).reshape(3, *[1] * (image.ndim - 1))
    return (image.float() * weights).sum(0, keepdim=True).round().to(torch.uint8)


def resampled(image: Tensor, size: Sequence[int]) -> Tensor:
    """``(C, *spatial)`` uint8 at another size; smaller ones are averaged, not just sampled."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    settings: dict[str, Any] = {"mode": "bilinear", "antialias": True}
    if image.ndim == 4:
        shrinks = all(new <= old for new, old in zip(size, image.shape[1:], strict=True))
        settings = {"mode": "area" if shrinks else "trilinear"}
    found = F.interpolate(image[None].float(), tuple(size), **settings)[0]
    return found.round().clamp(0, 255).to(torch.uint8)
