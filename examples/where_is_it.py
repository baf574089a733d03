"""One lesion, two scans: other voxels, the same millimetres.

The second scan is tilted by 20 degrees, mirrored and has other voxels, as two scanners would give.
Run it with the name of the picture to save: `python examples/where_is_it.py where_is_it.png`.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np

from medgen import phantoms
from medgen.preparation import resample
from medgen.scoring import find
from medgen.volume import Geometry


def tilted_grid() -> Geometry:
    """Voxels of 2.5 x 2.5 x 4 mm; x to the left, slices tilted about it by 20 degrees."""
    tilt = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, 0] = (-2.5, 0, 0)
    affine[:3, 1] = (0, 2.5 * np.cos(tilt), 2.5 * np.sin(tilt))
    affine[:3, 2] = (0, -4.0 * np.sin(tilt), 4.0 * np.cos(tilt))
    shape = (64, 80, 44)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(shape, affine)


def main(picture: str) -> None:
    """Find the lesion in both scans, compare its places, and draw them."""
    phantom = phantoms.brain(
        (72, 88, 60), spacing_mm=2.0, contrast="flair", seed=5, lesion_radius_mm=10
    )
    straight, tilted = phantom.image.geometry, tilted_grid()
    scans = {straight: phantom.image.voxels[0]}
    scans[tilted] = resample(phantom.image.voxels[0], straight, tilted)

    places = []
    _, axes = plt.subplots(1, 2, figsize=(8, 4.5))
    for axis, (grid, scan) in zip(axes, scans.items(), strict=True):
        _, findings = find(scan, grid, threshold=780, minimum_volume_mm3=500)
        first = findings[0]
        places.append(first.centroid_mm)
        i, j, k = first.centroid_voxel
        x, y, z = first.centroid_mm
        print(
            f"{grid.axis_codes}: voxel ({i:5.1f} {j:5.1f} {k:5.1f}) is ({x:.1f} {y:.1f} {z:.1f}) mm"
        )
        axis.imshow(scan[:, :, round(k)].T, cmap="gray", origin="lower")
        axis.plot(i, j, "c+", markersize=20)
        axis.set_title(f"{grid.axis_codes}, voxel ({i:.0f}, {j:.0f}, {k:.0f})")
        axis.axis("off")

    distance = float(np.linalg.norm(np.subtract(*places)))
    print(f"distance between the two places: {distance:.2f} mm")
    assert distance < 1.0
    plt.tight_layout()
    plt.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1])
