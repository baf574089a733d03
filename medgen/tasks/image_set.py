"""A set of images in memory with what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with what is known about them.

    Attributes:
        images: ``(N, C, *spatial)`` float32, -1..1.
        condition: Number of the condition of each ``(N,)``, or None.
        labels: Label map of each ``(N, 1, *spatial)``, 0 background, or None.
        groups: Patient of each, or None if every image is of another one.

    Raises:
        InputError: Numbers or sizes do not match.
    """

    images: NDArray[np.float32]
    condition: NDArray[np.int64] | None = None
    labels: NDArray[np.int64] | None = None
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        for name in ("condition", "labels", "groups"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise InputError(f"{count} images, but {len(value)} {name}")
        if self.labels is not None and self.labels.shape[2:] != self.images.shape[2:]:
            msg = f"label maps {self.labels.shape[2:]} do not match images {self.images.shape[2:]}"
            raise InputError(msg)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, chosen: NDArray[Any]) -> ImageSet:
        """The images with these numbers (or where this mask is true)."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return ImageSet(
            self.images[index],
            None if self.condition is None else self.condition[index],
            None if self.labels is None else self.labels[index],
            None if self.groups is None else [self.groups[int(i)] for i in index],
        )

    def slices(self) -> ImageSet:
        """Volumes as the slices along their last axis; those of one volume share a group."""
        if self.images.ndim == 4:
            return self
        count, depth = len(self), self.images.shape[-1]
        owners = np.repeat(np.arange(count), depth)
        # Not bare numbers, which patients of another set may be called.
        own = [f"volume {n} of its set" for n in range(count)]
        groups = own if self.groups is None else list(self.groups)

        def cut(values: NDArray[Any]) -> NDArray[Any]:
            moved = np.moveaxis(values, -1, 1)
            return np.ascontiguousarray(moved.reshape(count * depth, *moved.shape[2:]))

        return ImageSet(
            cut(self.images),
            None if self.condition is None else self.condition[owners],
            None if self.labels is None else cut(self.labels),
            [groups[int(i)] for i in owners],
        )
