"""A scan's own voxels as a network sees them: turned and scaled, never resampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medgen.brain import find_foreground
from medgen.errors import InputError, PackageError
from medgen.preparation import Preparation, checked_voxels
from medgen.volume import Geometry, Volume

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Turn:
    """How the axes of a grid are turned towards right, front and head, without resampling.

    Attributes:
        order: Which axis of the grid comes first, second, ...
        flips: Which of the turned axes run backwards in the grid.
    """

    order: tuple[int, ...]
    flips: tuple[int, ...]

    def there(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Values of the grid ``(X, Y[, Z])`` in the order of a network; a view."""
        return np.flip(values.transpose(self.order), self.flips)

    def back(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values in the order of a network on the grid again; a view."""
        return np.flip(values, self.flips).transpose(np.argsort(self.order))


def turn_of(geometry: Geometry) -> Turn:
    """The turn that brings a grid nearest to right, front and head."""
    codes = geometry.axis_codes
    worlds = ["RAS".index({"L": "R", "P": "A", "I": "S"}.get(code, code)) for code in codes]
    order = tuple(int(axis) for axis in np.argsort(worlds))
    flips = tuple(place for place, axis in enumerate(order) if codes[axis] in "LPI")
    return Turn(order, flips)


@dataclass(frozen=True, eq=False)
class Scale:
    """What is image in a scan, and which of its values a network sees as 0 and 1.

    Attributes:
        low: The value that becomes 0.
        high: The value that becomes 1.
        foreground: ``(X, Y[, Z])`` bool, everything but a constant background; None if there is
            none, and every voxel is image.
        note: The same in words.
    """

    low: float
    high: float
    foreground: NDArray[np.bool_] | None
    note: str

    def image(self, values: NDArray[np.generic], turn: Turn) -> torch.Tensor:
        """Values ``(X, Y[, Z])`` as a network sees them, ``(1, *turned)`` float32; a copy."""
        import torch

        image = np.array(turn.there(values), dtype=np.float32, order="C")
        image -= np.float32(self.low)
        image /= np.float32(self.high - self.low)
        return torch.from_numpy(image)[None]


def scale_of(volume: Volume, preparation: Preparation) -> Scale:
    """Find the foreground of a scan and its percentiles.

    Args:
        volume: ``(1, X, Y[, Z])``.
        preparation: Says which percentiles; its voxel size is that of the training images, and
            does not matter here.

    Raises:
        InputError: Values are not finite, or the scan has no contrast.
        PackageError: The model wants another normalisation, which cannot be undone.
    """
    if preparation.normalisation != "percentile":
        msg = f"a model with normalisation {preparation.normalisation!r} cannot restore values"
        raise PackageError(msg)
    voxels = checked_voxels(volume)
    foreground, background = find_foreground(volume)
    if background is None:
        values, note = voxels[0].flatten(), "no constant background, every voxel is computed"
    else:
        values = voxels[0][foreground]
        note = f"the network leaves the constant background ({background:.0%}) alone"
    wanted = [preparation.lower, preparation.upper]
    low, high = (float(v) for v in np.percentile(values, wanted, overwrite_input=True))
    if not high > low:
        msg = "the image has no contrast: almost all values of its foreground are equal"
        raise InputError(msg, "Check that this is an image and not a mask or a label map.")
    return Scale(low, high, None if background is None else foreground, note)
