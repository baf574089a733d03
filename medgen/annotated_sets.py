"""Sets of images with label maps, split by group: what annotated synthesis learns from.

A folder (or a subfolder per condition, see :mod:`medgen.grouped_files`) holds either ``.npz`` files
with ``image`` and ``label`` ``(Z, X, Y)``, or two folders ``images`` and ``labels`` with files of
the same names: NIfTI volumes, or pictures. Label 0 is the background.

Images become -1..1: uint8 from 0..255; everything else from its 1st and 99th percentile, case by
case. For slices a volume is cut along its third axis (the first of an ``.npz``).
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

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
from medgen.image_sets import (
    PERCENTILES,
    Batch,
    in_turn,
    mixed_up,
    read_image,
    resampled,
    right_front_up,
    to_signed,
    warn_of_noise,
)

# At jitter 1: parts of the size, part of the scale, and degrees.
LARGEST_SHIFT, LARGEST_SCALING, LARGEST_TURN = 0.06, 0.1, 10.0
BACKGROUND = "background"


class AnnotatedConfig(SetConfig):
    """Settings of a set of images with label maps."""

    label_names: tuple[str, ...] | None = Field(
        None, description="names of the labels 1, 2, ...; others are then refused; none: numbers"
    )
    fit: Literal["crop", "resample"] = Field(
        "crop", description="how an image gets to `size`: cut or padded about its middle, or scaled"
    )
    condition_by: Literal["none", "volume"] = Field(
        "none",
        description="volume: conditions `small` and `large`, by the median volume of all labels "
        "over the training cases",
    )
    mirror: bool = Field(False, description="mirror training images left-right at random")
    jitter: float = Field(
        0.0,
        ge=0,
        le=2,
        description="strength of random shifts, scalings and turns of training images; 1 is up to "
        "6 % of the size, 10 % and 10 degrees",
    )


class Case(NamedTuple):
    """One image and its label map, both ``(1, *spatial)`` uint8, and the volume of all labels."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    volume_mm3: float


def split_annotated(config: AnnotatedConfig) -> tuple[list[Item], list[Item]]:
    """The files to train on and those held out; see :func:`medgen.grouped_files.split_images`."""
    folder = config.folder
    if config.group_pattern is None and folder is not None and any(folder.rglob("*.npz")):
        # By custom the part before the first underscore is the patient.
        config = config.model_copy(update={"group_pattern": "^([^_.]+)[_.]"})
    return split(config, find_pairs)


def find_pairs(folder: Path) -> list[tuple[Path, Path | None]]:
    """Files with labels in a folder: ``.npz``, or pairs of equal names in images/ and labels/.

    Raises:
        InputError: An image has no labels, or labels have no image.
    """
    images, labels = folder / "images", folder / "labels"
    if not images.is_dir() or not labels.is_dir():
        return [(path, None) for path in files(folder, (".npz",))]
    endings = PICTURES + VOLUMES
    found = {path.name.split(".")[0]: path for path in files(images, endings)}
    partners = {path.name.split(".")[0]: path for path in files(labels, endings)}
    for missing, there, where in (
        (found.keys() - partners.keys(), found, labels),
        (partners.keys() - found.keys(), partners, images),
    ):
        if missing:
            name = there[min(missing)].name
            raise InputError(
                f"{name} has no partner in {where} ({len(missing)} such file(s))",
                "Every image needs labels of the same name, and the other way round.",
            )
    return [(found[name], partners[name]) for name in sorted(found)]


def read_case(item: Item) -> Case:
    """One file with its labels.

    Raises:
        InputError: Damaged, without labels, or labels that do not match the image.
    """
    if item.labels is None:
        image, labels = _read_npz(item.path)
        voxel = 1.0
    else:
        image, voxel = read_image(item.path)
        labels = _read_labels(item.labels)
    if len(image) != 1:
        raise InputError(f"{item.path} is in colour; annotated sets are grey", "Save it as grey.")
    if image.shape != labels.shape:
        raise InputError(
            f"labels do not match: the image {item.path} is {image.shape[1:]}, "
            f"its labels are {labels.shape[1:]}",
            "Both must lie on the same grid.",
        )
    return Case(image, labels, float((labels > 0).sum()) * voxel)


def _read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = {"image", "label"} - set(stored.files)
            if missing:
                msg = f"{path} holds {', '.join(stored.files)}, but needs `image` and `label`"
                raise InputError(msg)
            image, labels = stored["image"], stored["label"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or no .npz: {error}", "Write it again.") from error
    if image.dtype != np.uint8:
        low, high = np.percentile(image, PERCENTILES)
        scaled = ((image.astype(np.float32) - low) / max(float(high - low), 1e-6)).clip(0, 1)
        image = np.round(scaled * 255).astype(np.uint8)
    # (Z, X, Y) to (1, X, Y, Z); a single image (X, Y) stays one.
    image, labels = (np.moveaxis(a, 0, -1) if a.ndim == 3 else a for a in (image, labels))
    return image[None], _whole(labels[None], path)


def _read_labels(path: Path) -> NDArray[np.uint8]:
    if path.name.lower().endswith(".png"):
        from medgen.io.synthetic import read_label_png

        voxels = read_label_png(path)[None]
    elif path.name.lower().endswith(PICTURES):
        from medgen.io.raster import read_raster

        voxels = read_raster(path, allow_constant=True).voxels
    else:
        from medgen.io.nifti import read_nifti

        volume = read_nifti(path, allow_constant=True)
        voxels = right_front_up(volume.voxels, volume.affine)
    return _whole(voxels, path)


def _whole(labels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Labels as bytes, if that is what they are."""
    if labels.size and (labels.min() < 0 or labels.max() > 255 or (labels % 1).any()):
        raise InputError(
            f"{path} must hold whole numbers from 0 to 255 as labels, "
            f"got {labels.min():g} to {labels.max():g}"
        )
    return labels.astype(np.uint8)


class AnnotatedImages:
    """Images with label maps from a folder, kept in memory with 8 bits.

    A batch holds ``image`` ``(B, 1, *spatial)`` in -1..1, ``labels`` ``(B, 1, *spatial)`` int64
    and, if there are conditions, ``condition`` ``(B,)``.

    Attributes:
        label_names: The background's name first.
        label_count: Number of labels with the background.
        condition_names: In the order of their numbers.
        y_down: Whether the second axis runs downwards in an upright picture.

    Raises:
        InputError: The set is empty, damaged, or its labels do not match.
        LeakageError: See :func:`medgen.grouped_files.split_images`.
    """

    Config = AnnotatedConfig
    channels = 1

    def __init__(self, config: AnnotatedConfig) -> None:
        self.config = config
        names = condition_names(config, find_pairs)
        if names and config.condition_by != "none":
            msg = f"data.condition_by is {config.condition_by}, but the folders are conditions too"
            raise InputError(msg, "Set data.conditions to {} or condition_by to none.")
        train, held_out = split_annotated(config)
        self._items = {"train": train, "held_out": held_out}
        cases = [read_case(item) for item in (*train, *held_out)]
        warn_of_noise([item.path for item in (*train, *held_out)], [case.image for case in cases])
        self.label_names = self._names([*train, *held_out], cases)
        self.label_count = len(self.label_names)
        conditions = [item.condition for item in (*train, *held_out)]
        if config.condition_by == "volume":
            names = ("small", "large")
            median = float(np.median([case.volume_mm3 for case in cases[: len(train)]]))
            conditions = [int(case.volume_mm3 > median) for case in cases]
        self.condition_names = names
        items = [
            item._replace(condition=number)
            for item, number in zip((*train, *held_out), conditions, strict=True)
        ]
        # A picture or an .npz has its rows from top to bottom, a volume points to the front.
        self.y_down = not items[0].path.name.lower().endswith(VOLUMES)
        self.image_size = self._size(cases[0], items[0])
        count = len(train)
        self.training = self._stacked(items[:count], cases[:count])
        shown = self._stacked(items[count:], cases[count:]) if held_out else self.training
        order = mixed_up(0, len(shown[0]))
        self.held_out = tuple(values[order] for values in shown)
        self.facts = facts(items[:count], items[count:], names) | {
            "images": len(self.training[0]),
            "held_out_images": len(self.held_out[0]) if held_out else 0,
        }

    def items(self, side: Literal["train", "held_out"]) -> list[Item]:
        """The files on one side of the split."""
        return self._items[side]

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``: every image once, in a random order, then again."""
        config = self.config
        chosen = in_turn(config.seed, index, config.batch_size, len(self.training[0]))
        images, labels, conditions = (values[chosen] for values in self.training)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        if config.mirror:
            shape = (len(images), *[1] * (images.ndim - 1))
            flip = torch.rand(shape, generator=generator) < 0.5
            images, labels = (torch.where(flip, x.flip(2), x) for x in (images, labels))
        batch = self._batch(images, labels, conditions)
        if config.jitter:
            moved = jittered(batch["image"], batch["labels"], config.jitter, generator)
            batch["image"], batch["labels"] = moved
        return batch

    def validation_batch(self, index: int) -> Batch:
        """Batch number ``index`` of held-out images, as they are."""
        first, count = index * self.config.batch_size, len(self.held_out[0])
        places = torch.arange(first, first + self.config.batch_size) % count
        images, labels, conditions = (
            values[mixed_up(0, count)[places]] for values in self.held_out
        )
        return self._batch(images, labels, conditions)

    def _batch(self, images: Tensor, labels: Tensor, conditions: Tensor) -> Batch:
        batch = {"image": to_signed(images), "labels": labels.long()}
        return batch | ({"condition": conditions} if self.condition_names else {})

    def _names(self, items: Sequence[Item], cases: Sequence[Case]) -> tuple[str, ...]:
        """Names of all labels; refuses labels that were not declared."""
        declared = self.config.label_names
        largest = max(int(case.labels.max()) for case in cases)
        if largest == 0:
            raise InputError(
                f"all labels in {self.config.folder} are 0, which is the background",
                "Check that these are the right files.",
            )
        if declared is None:
            return (BACKGROUND, *[f"label {number}" for number in range(1, largest + 1)])
        for item, case in zip(items, cases, strict=True):
            found = int(case.labels.max())
            if found > len(declared):
                raise InputError(
                    f"{item.labels or item.path} has the label {found}, but data.label_names "
                    f"declares {len(declared)}: {', '.join(declared)}",
                    "Name every label from 1 on, or correct the file.",
                )
        return (BACKGROUND, *declared)

    def _size(self, case: Case, item: Item) -> tuple[int, ...]:
        """Size of the images of a batch, and a check that they have enough axes."""
        dims, stored = self.config.spatial_dims, case.image.shape[1:]
        if dims == 3 and len(stored) == 2:
            raise InputError(
                f"{item.path} is a picture, but volumes are wanted (spatial_dims 3)",
                "Train a 2-D method on it: config.spatial_dims 2.",
            )
        return self.config.grid or stored[:dims]

    def _stacked(
        self, items: Sequence[Item], cases: Sequence[Case]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and conditions of all cases, or of all their slices, at one size."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for item, case in zip(items, cases, strict=True):
            image, labels = torch.from_numpy(case.image), torch.from_numpy(case.labels)
            slices = self.config.spatial_dims == 2 and image.ndim == 4
            pairs = (
                list(zip(image.unbind(-1), labels.unbind(-1), strict=True))
                if slices
                else [(image, labels)]
            )
            for one, its in pairs:
                if self.config.grid is None and tuple(one.shape[1:]) != self.image_size:
                    raise InputError(
                        f"the images differ: {items[0].path} is {self.image_size}, "
                        f"{item.path} is {tuple(one.shape[1:])}",
                        "Set data.size, to which all are cut or padded.",
                    )
                parts["image"].append(self._fitted(one, labels=False))
                parts["labels"].append(self._fitted(its, labels=True))
                parts["condition"].append(torch.tensor(item.condition))
        return tuple(torch.stack(parts[name]) for name in ("image", "labels", "condition"))  # type: ignore[return-value]

    def _fitted(self, values: Tensor, *, labels: bool) -> Tensor:
        """``(1, *spatial)`` at the size of a batch."""
        if self.config.fit == "crop":
            return cropped_or_padded(values, self.image_size)
        if labels:
            scaled = F.interpolate(values[None].float(), self.image_size, mode="nearest-exact")
            return scaled[0].to(torch.uint8)
        return resampled(values, self.image_size)


def cropped_or_padded(values: Tensor, size: Sequence[int]) -> Tensor:
    """``(C, *spatial)`` cut or padded with 0 to ``size``, about its middle."""
    for axis, wanted in enumerate(size, start=1):
        found = values.shape[axis]
        if found > wanted:
            values = values.narrow(axis, (found - wanted) // 2, wanted)
        elif found < wanted:
            before = (wanted - found) // 2
            padding = [0, 0] * (values.ndim - 1 - axis) + [before, wanted - found - before]
            values = F.pad(values, padding)
    return values


def jittered(
    images: Tensor, labels: Tensor, strength: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Images in -1..1 and their labels ``(B, 1, *spatial)``, shifted, scaled and turned alike.

    What comes in from outside is -1 in the image and 0 in the labels.
    """
    count, dims = len(images), images.ndim - 2

    def draw(*shape: int) -> Tensor:
        return strength * (2 * torch.rand(count, *shape, generator=generator) - 1)

    # torch counts axes from the last to the first and measures them from -1 to 1.
    half = torch.tensor(images.shape[2:][::-1], dtype=torch.float32) / 2
    angles = draw(dims, dims) * np.radians(LARGEST_TURN)
    turn = torch.linalg.matrix_exp((angles - angles.transpose(1, 2)) / 2)
    scale = torch.exp(draw(1, 1) * np.log1p(LARGEST_SCALING))
    matrix = turn * scale * half / half[:, None]
    shift = draw(dims, 1) * 2 * LARGEST_SHIFT
    grid = F.affine_grid(torch.cat([matrix, shift], dim=2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1, grid, mode="bilinear", align_corners=False) - 1
    where = F.grid_sample(labels.float(), grid, mode="nearest", align_corners=False)
    return moved, where.round().long()
