"""Real images without findings, with or without synthetic anomalies in them.

A folder of pictures (PNG, JPEG, TIFF), DICOM images or NIfTI volumes becomes what methods of
anomaly detection learn from. Every file goes through the same :class:`~medgen.preparation
.Preparation` as when a model is used, so that training and use cannot differ: orientation, voxel
size, intensities of 0..1, foreground. 2-D methods see slices of volumes.

Files are split by group, see :mod:`medgen.grouped_files`. The other conditions of a set, its ill
cases, are never shown, but they take part in the split: a patient who is held out there is held
out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from medgen.anatomy import PLANES
from medgen.corruption import chance, uniform
from medgen.corruption.pasting import (
    Pasted,
    cut_paste,
    foreign_patch,
    noisy_blobs,
    visible_part,
)
from medgen.errors import InputError
from medgen.grouped_files import (
    PICTURES,
    VOLUMES,
    Item,
    SetConfig,
    condition_names,
    facts,
    files,
    split,
)
from medgen.image_sets import in_turn, mixed_up
from medgen.preparation import Preparation

ENDINGS = (*PICTURES, *VOLUMES, ".dcm")
# Slices with less of the foreground than this part of the fullest one are not shown.
LEAST_FOREGROUND = 0.1
# Batches of one kind draw from their own part of the random numbers.
TRAINING, HELD_OUT = 0, 1

View = Literal["axial", "coronal", "sagittal"]
Anomaly = Literal["fpi", "cutpaste", "blobs"]
Batch = dict[str, Tensor]


class NormalsConfig(SetConfig):
    """Settings of a set of real images without findings."""

    size: int | tuple[int, ...] | None = Field(
        None,
        description="size that is cut out; smaller images are continued by their background, or "
        "reflected if they have none; none: all prepared images have the same size already",
    )
    normal: tuple[str, ...] = Field(
        (), description="conditions without findings; empty: all, because the set has no others"
    )
    preparation: Preparation = Field(
        Preparation(spacing_mm=None, margin_mm=0.0),
        description="how images are prepared, as in the recipe of the model's package; left out: "
        "in their own voxels, without a margin",
    )
    input_slices: Literal[1] = 1
    channels: int | None = Field(
        None, ge=1, description="1 for grey, 3 for colour; none: as they are stored"
    )
    views: tuple[View, ...] = Field(
        ("axial",), min_length=1, description="directions in which volumes are cut, for 2-D"
    )
    symmetries: Literal["none", "mirror", "dihedral"] = Field(
        "none",
        description="how training images are turned at random: left-right, or all eight ways "
        "where the tissue has no up and down",
    )
    shift: float = Field(
        0.05, ge=0, lt=0.5, description="largest random shift, as part of the image's size"
    )
    zoom: float = Field(0.1, ge=0, lt=0.5, description="largest random change of size")
    anomalies: dict[Anomaly, float] = Field(
        {"fpi": 1.0},
        description="how often each kind of synthetic anomaly is put in: patches of other images, "
        "moved patches of the same one, blobs; {}: never",
    )
    healthy_fraction: float = Field(
        0.2, ge=0, le=1, description="images that are left without an anomaly"
    )

    @model_validator(mode="after")
    def _sensible(self) -> NormalsConfig:
        if self.symmetries == "dihedral" and self.spatial_dims == 3:
            raise ValueError("symmetries: dihedral is for 2-D images")
        if self.anomalies and not sum(self.anomalies.values()) > 0:
            raise ValueError("one of the anomalies must be put in more often than never")
        return self


class Scan(NamedTuple):
    """A prepared image ``(C, X, Y, Z)`` float16 and its foreground; a picture has one slice."""

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Move:
    """Where an image is cut out and how it is turned; the same one fits any scan.

    Attributes:
        order: Spatial axes of the scan in the order of the cut; the slices' first, for 2-D.
        place: Which slice, as part of those with foreground.
        where: Where the window lies along each axis, as part of its room, 0..1.
        shift: Along each axis, as part of the window.
        zoom: Voxels of the scan per voxel of the window.
        mirror: Exchange left and right.
        flips: Axes of the window to flip.
        transpose: Exchange the window's axes.
    """

    order: tuple[int, ...]
    place: float
    where: tuple[float, ...]
    shift: tuple[float, ...]
    zoom: float = 1.0
    mirror: bool = False
    flips: tuple[int, ...] = ()
    transpose: bool = False


class Normals:
    """Images without findings, in memory in half precision.

    A batch holds ``healthy`` ``(B, C, *spatial)``, about 0..1 and 0 outside the foreground;
    ``image``, the same with synthetic anomalies; ``anomaly`` ``(B, 1, *spatial)``, where they can
    be seen, and ``mask``, the foreground, both 0 or 1.

    Attributes:
        channels: Of an image.
        image_size: Of an image.
        facts: What the set is made of; groups only as hashes.
        training: Scans to train on.
        held_out: Scans of groups that are never trained on; without any, the former stand in.
        held_out_files: Their files and groups; empty if none are held out.

    Raises:
        InputError: The set is empty, damaged or mixed, too small to split, or does not fit
            ``size`` and ``channels``.
        LeakageError: A group or image would be on both sides of the split.
    """

    Config = NormalsConfig

    def __init__(self, config: NormalsConfig) -> None:
        self.config = config
        train, held_out, self.facts = _split_normals(config)
        self.held_out_files = held_out
        self.training = [_read(item.path, config) for item in train]
        self.held_out = [_read(item.path, config) for item in held_out] or self.training
        every = dict(zip([*train, *held_out], [*self.training, *self.held_out], strict=False))
        self.channels = _one_number_of_channels(every, config)
        self.image_size = config.grid or _one_size(every, config)
        if config.symmetries == "dihedral" and len(set(self.image_size)) > 1:
            msg = f"data.symmetries: dihedral needs square images, got {self.image_size}"
            raise InputError(msg, "Set data.size, or symmetries: mirror.")

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``: every scan once, in a random order, then again."""
        config, generator = self.config, _generator(self.config.seed, TRAINING, index)
        chosen = in_turn(config.seed, index, config.batch_size, len(self.training))
        return self._batch(self.training, chosen, generator, moves=True)

    def validation_batch(self, index: int) -> Batch:
        """Batch number ``index`` of held-out images, not moved, with anomalies."""
        count, first = len(self.held_out), index * self.config.batch_size
        order = mixed_up(0, count)
        chosen = order[torch.arange(first, first + self.config.batch_size) % count]
        generator = _generator(0, HELD_OUT, index)
        return self._batch(self.held_out, chosen, generator, moves=False)

    def _batch(
        self, scans: Sequence[Scan], chosen: Tensor, generator: Generator, *, moves: bool
    ) -> Batch:
        examples = [
            self._example(scans, number, generator, moves=moves) for number in chosen.tolist()
        ]
        return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}

    def _example(
        self, scans: Sequence[Scan], number: int, generator: Generator, *, moves: bool
    ) -> Batch:
        """One image and the same with an anomaly, if chance wants one."""
        config, move = self.config, self._move(generator, moves=moves)
        healthy, mask = _cut(scans[number], move, self.image_size)
        pasted = Pasted(healthy.clone(), torch.zeros_like(mask))
        if config.anomalies and not chance(generator, config.healthy_fraction):
            kind = _drawn(config.anomalies, generator)
            foreign = int(torch.randint(max(1, len(scans) - 1), (), generator=generator))
            foreign += foreign >= number and len(scans) > 1

            def other() -> Tensor:
                return _cut(scans[foreign], move, self.image_size)[0]

            image, factor = KINDS[kind](healthy, other, generator)
            # Nothing is put where there is nothing.
            inside = factor * mask
            pasted = Pasted(torch.where(inside > 0, image, healthy), inside)
        anomaly = visible_part(healthy, pasted)
        return {"image": pasted.image, "healthy": healthy, "anomaly": anomaly, "mask": mask}

    def _move(self, generator: Generator, *, moves: bool) -> _Move:
        """A random cut; without ``moves`` only the slice of a volume is random."""
        config, dims = self.config, self.config.spatial_dims
        order: tuple[int, ...] = (0, 1, 2)
        if dims == 2:
            view = int(torch.randint(len(config.views), (), generator=generator))
            order = PLANES[config.views[view]]
        place = uniform(generator, 0, 1)
        if not moves:
            return _Move(order, place, (0.5,) * dims, (0.0,) * dims)
        turns = config.symmetries == "dihedral"
        return _Move(
            order,
            place,
            where=tuple(uniform(generator, 0, 1) for _ in range(dims)),
            shift=tuple(uniform(generator, -config.shift, config.shift) for _ in range(dims)),
            zoom=1 + uniform(generator, -config.zoom, config.zoom),
            mirror=config.symmetries == "mirror" and chance(generator, 0.5),
            flips=tuple(axis for axis in (1, 2) if turns and chance(generator, 0.5)),
            transpose=turns and chance(generator, 0.5),
        )


# How each kind of anomaly is put in: from the image and, if it is needed, another one.
KINDS: dict[Anomaly, Callable[[Tensor, Callable[[], Tensor], Generator], Pasted]] = {
    "fpi": lambda image, other, generator: foreign_patch(image, other(), generator),
    "cutpaste": lambda image, _, generator: cut_paste(image, generator),
    "blobs": lambda image, _, generator: noisy_blobs(image, generator),
}


def _split_normals(config: NormalsConfig) -> tuple[list[Item], list[Item], dict[str, Any]]:
    """Normal images to train on and those held out, and what they are."""

    def find(folder: Path) -> list[tuple[Path, Path | None]]:
        return [(path, None) for path in files(folder, ENDINGS)]

    names = condition_names(config, find)
    unknown = [name for name in config.normal if name not in names]
    if unknown:
        raise InputError(
            f"data.normal names {', '.join(unknown)}, but the conditions of {config.folder} are "
            f"{', '.join(names) or 'not told apart'}",
            "Name subfolders, or leave data.normal out if all images are normal.",
        )
    wanted = {number for number, name in enumerate(names) if name in config.normal} or {
        number for number, _ in enumerate(names or ("",))
    }
    train, held_out = (
        [item for item in side if item.condition in wanted] for side in split(config, find)
    )
    found = facts(train, held_out, names)
    kept = {name: n for name, n in found["conditions"].items() if names.index(name) in wanted}
    return train, held_out, found | {"conditions": kept}


def _read(path: Path, config: NormalsConfig) -> Scan:
    """One file, prepared."""
    from medgen.io import read

    volume = read(path)
    if volume.spatial_dims < config.spatial_dims:
        raise InputError(f"{path} is 2-D, but the method is 3-D", "Give volumes, or a 2-D method.")
    try:
        prepared = config.preparation.apply(volume)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", error.hint) from error
    image, mask = prepared.image.as_tensor().half(), prepared.mask
    if volume.spatial_dims == 2:
        image, mask = image[..., None], mask[..., None]
    return Scan(image, mask)


def _one_number_of_channels(scans: dict[Item, Scan], config: NormalsConfig) -> int:
    """The channels of all images; refuses a mixture."""
    wanted = config.channels or len(next(iter(scans.values())).image)
    for item, scan in scans.items():
        if len(scan.image) != wanted:
            raise InputError(
                f"{item.path} has {len(scan.image)} channel(s), but {wanted} are wanted",
                f"Set config.channels to {len(scan.image)}, or save all images alike.",
            )
    return wanted


def _one_size(scans: dict[Item, Scan], config: NormalsConfig) -> tuple[int, ...]:
    """The size of all images, or of all slices."""
    orders = [PLANES[view] for view in config.views] if config.spatial_dims == 2 else [(0, 1, 2)]
    sizes: dict[tuple[int, ...], Path] = {}
    for item, scan in scans.items():
        shape = scan.image.shape[1:]
        for order in orders if shape[2] > 1 else [(2, 0, 1)]:
            sizes.setdefault(tuple(shape[n] for n in order)[-config.spatial_dims :], item.path)
    if len(sizes) > 1:
        (one, path), (other, second) = list(sizes.items())[:2]
        raise InputError(
            f"prepared images differ in size: {path} is {one}, {second} is {other}",
            "Set data.size, which is cut out of all of them.",
        )
    return next(iter(sizes))


def _cut(scan: Scan, move: _Move, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A window ``(C, *size)`` float32 of a scan, and its foreground ``(1, *size)``, 0 or 1."""
    order = move.order if scan.image.shape[3] > 1 else PLANES["axial"]
    axes = [0, *(1 + axis for axis in order)]
    image, mask = scan.image.permute(axes), scan.mask.permute(axes)
    if move.mirror:
        left_right = 1 + order.index(0)
        image, mask = image.flip(left_right), mask.flip(left_right)
    if len(size) == 2:
        full = mask[0].flatten(1).sum(1)
        slices = (full >= LEAST_FOREGROUND * full.max()).nonzero()[:, 0]
        number = int(slices[int(move.place * len(slices))])
        image, mask = image[:, number], mask[:, number]
    # A background goes on; what fills its image is mirrored, as in medgen.inference.
    image = _window(image.float(), move, size, "reflection" if mask.all() else "zeros")
    mask = (_window(mask.float(), move, size, "zeros") > 0.5).float()
    image = image.flip(move.flips) if move.flips else image
    mask = mask.flip(move.flips) if move.flips else mask
    if move.transpose:
        image, mask = image.transpose(1, 2), mask.transpose(1, 2)
    return image, mask


def _window(image: Tensor, move: _Move, size: Sequence[int], beyond: str) -> Tensor:
    """``(C, *size)`` cut out of ``(C, *spatial)``; without a zoom no voxel is interpolated."""
    dims = len(size)
    theta = torch.zeros(1, dims, dims + 1)
    for axis, (wanted, length) in enumerate(zip(size, image.shape[1:], strict=True)):
        room = length - wanted
        first = int(move.where[axis] * (room + 1)) if room > 0 else room // 2
        first += round(move.shift[axis] * wanted)
        place = dims - 1 - axis  # affine_grid counts the last axis first
        theta[0, place, place] = move.zoom * wanted / length
        theta[0, place, dims] = (2 * first + wanted) / length - 1
    grid = F.affine_grid(theta, [1, len(image), *size], align_corners=False)
    return F.grid_sample(image[None], grid, padding_mode=beyond, align_corners=False)[0]


def _drawn(weights: dict[Anomaly, float], generator: Generator) -> Anomaly:
    """One of the kinds, as often as its weight says."""
    names = sorted(weights)
    parts = torch.tensor([weights[name] for name in names])
    return names[int(torch.multinomial(parts, 1, generator=generator))]


def _generator(seed: int, side: int, index: int) -> Generator:
    return torch.Generator().manual_seed((seed * 2 + side) * 1_000_003_001 + index)
