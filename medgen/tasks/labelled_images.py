"""Images with a label each, prepared for a trained network: what latent spaces and probes look at.

A folder holds one subfolder per label, or images without labels; see
:mod:`medgen.grouped_files`. Every file goes through the network's own preparation, or, if it knows
none, is taken as a picture: 8 bits become 0..1. 2-D networks see of a volume the axial slice with
the largest foreground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.annotated_sets import cropped_or_padded
from medgen.errors import InputError
from medgen.grouped_files import PICTURES, Item, SetConfig, condition_names, files, split
from medgen.image_sets import read_image, resampled, with_channels
from medgen.normal_sets import ENDINGS
from medgen.preparation import Preparation
from medgen.tasks.trained import Trained


@dataclass(frozen=True, eq=False)
class Labelled:
    """Prepared images.

    Attributes:
        images: ``(N, C, *spatial)`` float32, about 0..1.
        items: The file, number of the label, and group of each.
        codes: Directions of the axes of an image, such as ``RA``; pictures are ``LP``.
    """

    images: Tensor
    items: tuple[Item, ...]
    codes: str

    @property
    def labels(self) -> NDArray[np.int64]:
        """Number of the label of each ``(N,)``."""
        return np.array([item.condition for item in self.items], dtype=np.int64)

    def picture(self, image: Tensor) -> NDArray[np.uint8]:
        """An image of this kind ``(C, *spatial)`` as rows ``(height, width, 3)``.

        Of a volume the middle slice along its last axis. Seen as radiologists do: the front at the
        top, the patient's right on the left.
        """
        flat = image[..., image.shape[-1] // 2] if image.ndim == 4 else image
        shown = flat if len(flat) == 3 else flat.mean(0, keepdim=True).expand(3, -1, -1)
        turned = shown.flip([1 + n for n, code in enumerate(self.codes[:2]) if code in "RAS"])
        return (turned.clamp(0, 1) * 255).round().to(torch.uint8).permute(2, 1, 0).numpy()


def found_images(config: SetConfig) -> tuple[list[Item], list[Item], tuple[str, ...]]:
    """Files to train on, files held out, and names of the labels.

    Raises:
        InputError: A folder, file or group is missing, or there are too few groups.
        LeakageError: A group or the same image would be on both sides.
    """
    return *split(config, _find), condition_names(config, _find)


def _find(folder: Path) -> list[tuple[Path, Path | None]]:
    return [(path, None) for path in files(folder, ENDINGS)]


def read_labelled(items: Sequence[Item], trained: Trained) -> Labelled:
    """All images of a set, at one size that the network takes.

    That is the size it was trained on or, if it takes others, that of the largest image. Pictures
    are resampled to it; prepared images have their scale already and are cut, or padded with 0,
    about their middle.

    Raises:
        InputError: A file is damaged, or does not fit the network.
    """
    dims, channels, size = trained.method.spatial_dims, _channels(trained), _known_size(trained)
    read = [_read(item.path, trained, dims, channels, size) for item in items]
    found = [image for image, _ in read]
    size = size or _common_size(found, trained.method.divisor)
    images = torch.stack([cropped_or_padded(image, size) for image in found])
    return Labelled(images, tuple(items), read[0][1])


def _channels(trained: Trained) -> int | None:
    """Channels that the network takes; None: any number."""
    found = getattr(trained.method, "channels", getattr(trained.method.config, "channels", None))
    return None if hasattr(trained.method, "features") else found


def _read(
    path: Path,
    trained: Trained,
    dims: int,
    channels: int | None,
    size: tuple[int, ...] | None,
) -> tuple[Tensor, str]:
    """One image ``(C, *spatial)``, and the directions of its axes."""
    codes = "LP"
    if trained.preparation is None and dims == 2 and path.name.lower().endswith(PICTURES):
        image = torch.from_numpy(read_image(path)[0])
        if channels in (1, 3) and len(image) in (1, 3):
            image = with_channels(image, channels)
        values = (image if size is None else resampled(image, size)).float() / 255
    else:
        preparation = trained.preparation or Preparation(spacing_mm=None)
        values, codes = _prepared(path, preparation, dims)
    if channels is not None and len(values) != channels:
        msg = f"{path.name} has {len(values)} channel(s), {trained.name!r} takes {channels}"
        raise InputError(msg, "Give images like those that it was trained on.")
    return values, codes


def _prepared(path: Path, preparation: Preparation, dims: int) -> tuple[Tensor, str]:
    """One image as a model would get to see it, and the directions of its axes."""
    from medgen.io import read

    volume = read(path)
    if volume.spatial_dims < dims:
        msg = f"{path.name} is 2-D, but the network takes volumes"
        raise InputError(msg, "Give volumes.")
    try:
        prepared = preparation.apply(volume)
    except InputError as error:
        raise InputError(f"{path.name}: {error.message}", error.hint) from error
    image: Tensor = prepared.image.as_tensor().float()
    if volume.spatial_dims > dims:
        fullest = int(prepared.mask[0].sum(dim=(0, 1)).argmax())
        image = image[..., fullest]
    return image, prepared.grid.axis_codes


def _known_size(trained: Trained) -> tuple[int, ...] | None:
    """The size that the network was trained on, if it is known."""
    given: Any = getattr(trained.method, "image_size", None) or trained.data.get("size")
    if given is None or isinstance(given, Sequence):
        return None if given is None else tuple(given)
    return (given,) * trained.method.spatial_dims


def _common_size(images: Sequence[Tensor], divisor: int) -> tuple[int, ...]:
    """The least size that holds all images and that the network can halve often enough."""
    largest = [max(image.shape[axis] for image in images) for axis in range(1, images[0].ndim)]
    return tuple(-(-edge // divisor) * divisor for edge in largest)
