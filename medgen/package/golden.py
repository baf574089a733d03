"""The golden case: a tiny input and what the model must make of it, on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import PackageError
from medgen.manifest import Task, check_files
from medgen.package.detection import run_model
from medgen.package.files import CARD, GOLDEN_EXPECTED, GOLDEN_INPUT, ModelPackage
from medgen.package.restoration import run_restoration
from medgen.volume import Geometry, Provenance, Volume

# Resampling and convolution differ in the last digits between processors, and a voxel on the
# edge of the mask may fall on either side: so nearly all voxels must agree to this much. A
# generator passes such differences through tens of layers, so its images (-1..1) may differ more:
# by about one step of 8-bit grey.
GOLDEN_TOLERANCE: dict[Task, float] = {
    "detect-anomalies": 1e-3, "synthesize": 1e-2, "features": 1e-2,
    "inpaint": 5e-3, "super-resolve": 5e-3, "denoise": 5e-3, "translate": 5e-3,
}  # fmt: skip
GOLDEN_MAX_FRACTION = 1e-3

Arrays = dict[str, NDArray[Any]]


def golden_input(golden: Volume | Mapping[str, NDArray[Any]]) -> Arrays:
    """A golden input as the arrays that the package stores."""
    if isinstance(golden, Volume):
        return {"voxels": np.ascontiguousarray(golden.voxels), "affine": np.array(golden.affine)}
    return {name: np.ascontiguousarray(array) for name, array in golden.items()}


def golden_output(package: ModelPackage) -> Arrays:
    """What the model makes of its golden input, by its task.

    A detector: ``voxels``, ``affine`` to ``map``. A generator: ``latent`` and, if it has
    conditions, ``condition`` to ``image`` and, if it is annotated, ``labels``, of a volume every
    second voxel along each axis. A feature
    extractor: ``image`` to ``features``. A restoration: a prepared ``image`` ``(C, X, Y[, Z])`` to
    ``output`` and ``spread``, of several targets the first.
    """
    given = package.arrays(GOLDEN_INPUT)
    return _OUTPUTS[package.manifest.task](package, given)


def _detected(package: ModelPackage, given: Arrays) -> Arrays:
    geometry = Geometry(given["voxels"].shape[1:], given["affine"])
    return {"map": run_model(package, Volume(given["voxels"], geometry, Provenance())).map}


def _generated(package: ModelPackage, given: Arrays) -> Arrays:
    import torch

    method: Any = package.method()
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    with torch.inference_mode():
        made = method.generate(tensors["latent"], tensors.get("condition"))
    # Volumes are large: every second voxel along each axis shows a change as well, half precision
    # is finer than the tolerance, and labels are few.
    step = slice(None, None, 2 if method.spatial_dims == 3 else 1)
    small = {"image": np.float16, "labels": np.uint8}
    return {
        name: np.ascontiguousarray(value.numpy()[(..., *[step] * method.spatial_dims)], small[name])
        for name, value in made.items()
    }


def _measured(package: ModelPackage, given: Arrays) -> Arrays:
    import torch

    method: Any = package.method()
    with torch.inference_mode():
        features = method.features(torch.from_numpy(given["image"]))
    return {"features": np.ascontiguousarray(features.float().numpy())}


def _restored(package: ModelPackage, given: Arrays) -> Arrays:
    import torch

    assert package.manifest.restoration is not None  # the manifest's own check
    targets = package.manifest.restoration.targets
    image = torch.from_numpy(given["image"].astype(np.float32))
    made = run_restoration(package, image, target=targets[0] if len(targets) > 1 else None)
    return {name: np.ascontiguousarray(values.astype(np.float16)) for name, values in made.items()}


_OUTPUTS: dict[Task, Callable[[ModelPackage, Arrays], Arrays]] = {
    "detect-anomalies": _detected, "synthesize": _generated, "features": _measured,
    "inpaint": _restored, "super-resolve": _restored, "denoise": _restored, "translate": _restored,
}  # fmt: skip


def verify_package(package: ModelPackage) -> float:
    """Check every hash again, every part of the manifest, and the golden case.

    Returns:
        The largest difference between the golden output and the one computed here.

    Raises:
        PackageError: Anything differs by more than the last digits.
    """
    check_files(package.folder, package.manifest)
    missing = [name for name in (CARD, GOLDEN_INPUT, GOLDEN_EXPECTED) if not package.has(name)]
    if missing:
        raise PackageError(f"package {package.manifest.name} has no {', '.join(missing)}")
    calibration = package.calibration
    if calibration and calibration.minimum_volume_mm3 != package.scoring.minimum_volume_mm3:
        msg = "its threshold was calibrated for another smallest finding than its scoring uses"
        raise PackageError(f"package {package.manifest.name}: {msg}")
    expected, found = package.arrays(GOLDEN_EXPECTED), golden_output(package)
    if expected.keys() != found.keys():
        msg = f"its golden case gives {', '.join(found)}, expected {', '.join(expected)}"
        raise PackageError(f"package {package.manifest.name}: {msg}")
    return max(_difference(package, name, expected[name], found[name]) for name in expected)


def _difference(
    package: ModelPackage, name: str, expected: NDArray[Any], found: NDArray[Any]
) -> float:
    """The largest difference between two arrays, unless too many values differ."""
    tolerance = GOLDEN_TOLERANCE[package.manifest.task]
    if found.shape != expected.shape:
        msg = f"the golden {name} has shape {found.shape}, expected {expected.shape}"
        raise PackageError(f"package {package.manifest.name}: {msg}")
    difference = np.abs(found.astype(np.float64) - expected)
    fraction = float(np.mean(difference > tolerance))
    # Written so that a NaN anywhere fails too.
    if not (np.isfinite(found).all() and fraction <= GOLDEN_MAX_FRACTION):
        msg = (
            f"package {package.manifest.name}: its golden case gives another {name} here "
            f"({fraction:.2%} of voxels differ by more than {tolerance}, "
            f"the largest by {difference.max():.3g})"
        )
        raise PackageError(msg, "Do not use it with this installation; see `medgen info`.")
    # One voxel of another label is within the tolerance; its size as a number means nothing.
    return float(difference.max()) if found.dtype.kind == "f" else fraction
