"""What every reader refuses: voxels that carry no information, and a frame that is not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError


def refuse_unusable(
    voxels: NDArray[Any],
    path: str | Path,
    *,
    allow_constant: bool = False,
    limits: tuple[Any, Any] | None = None,
) -> None:
    """Raise if voxels are not finite, or all the same.

    Args:
        voxels: Array of any shape.
        path: Named in the error.
        allow_constant: True for masks, where "nothing marked" is an answer.
        limits: Smallest and largest voxel, if they are known already.

    Raises:
        InputError: Says how many voxels are NaN or infinite, or which value fills the image.
    """
    if limits is None:
        limits = (voxels.min(), voxels.max()) if voxels.size else (0, 1)
    # Both are finite if all voxels are.
    if not np.isfinite(limits).all():
        nan = int(np.isnan(voxels).sum())
        infinite = int(np.isinf(voxels).sum())
        raise InputError(
            f"{path} holds {nan} NaN and {infinite} infinite of {voxels.size} voxels; "
            "every voxel must be a number",
            "Replace them (for example by 0 outside the body) and try again.",
        )
    if not allow_constant and limits[0] == limits[1]:
        value = voxels.flat[0]
        raise InputError(
            f"{path} is {'empty' if value == 0 else 'constant'}: every voxel is {value}; "
            "an image needs contrast",
            "Check that this is the right file and that it was exported completely.",
        )


def choose_frame(path: str | os.PathLike[str], frames: int, frame: int | None) -> int:
    """The image to read from a file or series that holds ``frames`` of them.

    Args:
        path: Named in the error.
        frames: How many volumes (of a 4-D image) or pages there are.
        frame: The wish, counted from 0; may be left out if there is only one.

    Raises:
        InputError: Several and no wish, or a wish that is not there.
    """
    if frame is None:
        if frames > 1:
            raise InputError(
                f"{path} holds {frames} volumes or pages, and --frame must choose one",
                f"Choose one with --frame 0 to --frame {frames - 1}.",
            )
        return 0
    if not 0 <= frame < frames:
        raise InputError(
            f"{path} has no frame {frame}: it holds {frames} (counted from 0)",
            f"Choose --frame 0 to --frame {frames - 1}." if frames > 1 else "Leave out --frame.",
        )
    return frame


def blocking(error: InputError) -> dict[str, str | None]:
    """What stops reading, as :func:`medgen.io.describe` reports it."""
    return {"error": error.message, "hint": error.hint}
