"""Where the brain is: recognise skull-stripped scans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medgen.volume import Geometry

# The largest brains with all fluid around them stay below (the ICBM 152 template has 1.9 l in its
# own space), the smallest adult heads above.
LARGEST_BRAIN_ML = 2250.0
# A brain ends inside the field of view; a head's neck is cut by it.
LARGEST_CUT = 0.1


def why_skull_stripped(foreground: NDArray[np.bool_], geometry: Geometry) -> str | None:
    """Why a foreground is a brain without its skull, or None if it is not.

    Args:
        foreground: ``(X, Y, Z)``, holes filled.
        geometry: Its grid.

    Returns:
        The reason in words: its volume is a brain's, and the field of view does not cut it.
    """
    volume_ml = float(foreground.sum()) * geometry.voxel_volume_mm3 / 1000
    faces = [np.take(foreground, end, axis=axis) for axis in range(3) for end in (0, -1)]
    cut = max(float(face.mean()) for face in faces)
    if volume_ml > LARGEST_BRAIN_ML or cut > LARGEST_CUT:
        return None
    return f"{volume_ml:.0f} ml, inside the field of view"
