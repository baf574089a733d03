"""Sets of images in folders: what generative methods learn from.

:mod:`medgen.grouped_files` decides which file belongs to which condition and group, and what is
held out. Like all sources, ``source.batch(i)`` is a pure function of the settings and ``i``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.grouped_files import (
    PICTURES,
    Item,
    SetConfig,
    condition_names,
    facts,
    split_images,
)

__all__ = ["Images", "ImagesConfig", "Item", "SetConfig", "condition_names", "split_images"]

# Percentiles of a volume that become -1 and 1.
PERCENTILES = (1.0, 99.0)
# Sizes whose proportions differ by less than this are resampled without a word.
ASPECT_TOLERANCE = 0.02
# Mean step to the next pixel, in standard deviations of the image: 1.13 in pure noise, up to 0.65
# in histology, less in everything else.
NOISE = 0.9
# Weights of red, green and blue in grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)

Batch = dict[str, Tensor]

log = logging.getLogger(__name__)


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


def read_image(path: Path) -> tuple[NDArray[np.uint8], float]:
    """An image of 8 bits, and the volume of one voxel in mm3 (1 for a picture).

    A picture is ``(C, X, Y)``: columns, then rows from top to bottom, as in medgen.io. A volume is
    ``(C, X, Y, Z)``, its axes pointing right, front, up; its 1st and 99th percentile become 0 and
    255.

    Raises:
        InputError: Damaged, or a picture of more than 8 bits.
    """
    if path.name.lower().endswith(PICTURES):
        from medgen.io.raster import read_raster

        voxels = read_raster(path, allow_constant=True).voxels
        if voxels.dtype != np.uint8:
            raise InputError(
                f"{path} has {voxels.dtype} pixels; training takes pictures of 8 bits",
                "Save it as 8 bits, with the window you want to see.",
            )
        return voxels, 1.0
    from medgen.io.nifti import read_nifti

    volume = read_nifti(path)
    voxels = right_front_up(volume.voxels, volume.affine)
    low, high = np.percentile(voxels, PERCENTILES)
    scaled = (voxels.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return np.round(scaled.clip(0, 1) * 255).astype(np.uint8), volume.geometry.voxel_volume_mm3


def warn_of_noise(paths: Sequence[Path], images: Sequence[NDArray[Any]]) -> None:
    """Name the files whose content is noise, as an overflow in an earlier conversion leaves it."""
    noisy = [path for path, image in zip(paths, images, strict=True) if _roughness(image) > NOISE]
    if noisy:
        log.warning(
            "%d of %d images look like pure noise: %s. Look at them, and leave broken ones out "
            "with data.exclude.",
            len(noisy),
            len(paths),
            ", ".join(path.name for path in noisy),
        )


def _roughness(image: NDArray[Any]) -> float:
    values = image.astype(np.float32)
    spread = float(values.std())
    return float(np.abs(np.diff(values, axis=1)).mean()) / spread if spread else 0.0


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

    Config: type[ImagesConfig] = ImagesConfig
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
    warn_of_noise(paths, [image.numpy() for image in images])
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
