"""How visible the border of a filled hole is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Neighbours this many voxels outside the hole are what its border is compared with.
RING = 3


def seam(
    image: NDArray[Any], hole: NDArray[np.bool_], inside: NDArray[np.bool_] | None = None
) -> float | None:
    """Mean absolute jump across the border of a hole, relative to that between neighbours outside.

    Both are means over pairs of voxels that share a face: one in the hole and one outside it, or
    both outside and within three voxels of it. 1 means that the border cannot be told from its
    surroundings; a hole left at 0 in bright tissue has a seam many times larger; a smooth filling
    of textured tissue is below 1.

    Args:
        image: ``(X, Y[, Z])``, with the hole filled.
        hole: Its voxels.
        inside: Where pairs count (the foreground); everywhere if None.

    Returns:
        The ratio; None if there is no border, or the surroundings are flat.
    """
    from scipy import ndimage

    where = ndimage.find_objects(hole.astype(np.uint8))
    if not where:
        return None
    margin = RING + 1
    box = tuple(slice(max(0, part.start - margin), part.stop + margin) for part in where[0])
    values, hole = image[box].astype(np.float32), hole[box]
    counted = np.ones_like(hole) if inside is None else inside[box] | hole
    near = ndimage.binary_dilation(hole, iterations=RING) & ~hole
    across = [0.0, 0]
    outside = [0.0, 0]
    for axis in range(values.ndim):
        first = tuple(slice(None, -1) if a == axis else slice(None) for a in range(values.ndim))
        second = tuple(slice(1, None) if a == axis else slice(None) for a in range(values.ndim))
        jump = np.abs(values[second] - values[first])
        both = counted[first] & counted[second]
        border = both & (hole[first] ^ hole[second])
        ring = both & near[first] & near[second]
        for total, pairs in ((across, border), (outside, ring)):
            total[0] += float(jump[pairs].sum(dtype=np.float64))
            total[1] += int(pairs.sum())
    if not across[1] or not outside[1] or outside[0] == 0:
        return None
    return (across[0] / across[1]) / (outside[0] / outside[1])
