"""How near is a made image to the nearest training image, in a space of learned features?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import PackageError
from medgen.package import TRAINING_FEATURES, ModelPackage

if TYPE_CHECKING:
    from medgen.features import FeatureExtractor


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """The training images of a model as feature vectors.

    Attributes:
        extract: What measures them.
        features: ``(N, D)``.
        held_out: Distance of held-out real images to the nearest training image, sorted, ``(M,)``.
    """

    extract: FeatureExtractor
    features: NDArray[np.float64]
    held_out: NDArray[np.float64]

    def nearest(
        self, images: NDArray[np.float32], device: str = "cpu"
    ) -> list[dict[str, float | None]]:
        """For each image ``(N, C, *spatial)`` in -1..1 its ``distance`` and ``percentile``.

        The percentile is the part of held-out real images, in per cent, that lie as near to a
        training image or nearer: a small one means that the image may be a copy.
        """
        from scipy.spatial.distance import cdist

        found = self.extract(images, device=device)
        distances = cdist(found, self.features).min(axis=1)
        return [
            {
                "nearest_training_distance": float(f"{distance:.6g}"),
                "nearest_training_percentile": self._percentile(distance),
            }
            for distance in distances
        ]

    def _percentile(self, distance: float) -> float | None:
        if not len(self.held_out):
            return None
        below = np.searchsorted(self.held_out, distance, side="right")
        return round(100 * float(below) / len(self.held_out), 2)


UNKNOWN: dict[str, float | None] = {
    "nearest_training_distance": None,
    "nearest_training_percentile": None,
}


def training_images(package: ModelPackage) -> TrainingImages | str:
    """The training images of a package, or why their distance cannot be told."""
    from medgen.features import FeatureExtractor

    wanted = package.synthesis.extractor
    if wanted is None or not package.has(TRAINING_FEATURES):
        return f"the package {package.manifest.name} holds no features of its training images"
    try:
        extract = FeatureExtractor.load(wanted.name)
    except PackageError as error:
        return f"the feature extractor {wanted.name} is not there: {error.message}"
    if extract.sha256 != wanted.sha256:
        return (
            f"{wanted.name} is another version ({extract.sha256[:12]}…) than the one that "
            f"measured the training images ({wanted.sha256[:12]}…)"
        )
    arrays: dict[str, NDArray[Any]] = package.arrays(TRAINING_FEATURES)
    held_out = np.sort(arrays.get("held_out_distances", np.zeros(0)).astype(np.float64))
    return TrainingImages(extract, arrays["features"].astype(np.float64), held_out)


def feature_arrays(
    extract: FeatureExtractor,
    training: NDArray[np.float32],
    held_out: NDArray[np.float32],
    conditions: NDArray[np.int64] | None,
) -> dict[str, NDArray[Any]]:
    """The contents of ``training_features.safetensors``.

    Args:
        extract: What measures the images.
        training: Images trained on ``(N, C, *spatial)``, -1..1.
        held_out: Real images of groups that were not trained on, the same.
        conditions: Numbers of the conditions of the training images ``(N,)``.
    """
    from medgen.metrics.synthesis import nearest

    # Half precision moves a distance by less than a thousandth of the vectors' length.
    features = extract(training).astype(np.float16)
    found: dict[str, NDArray[Any]] = {"features": features}
    if len(held_out):
        distances, _ = nearest(extract(held_out), features)
        found["held_out_distances"] = np.sort(distances).astype(np.float32)
    if conditions is not None:
        found["condition"] = conditions.astype(np.int64)
    return found
