"""A picture of what a network's latent space holds: where images lie in it, and what lies between.

Codes are the means of posteriors or the vectors of an autoencoder, flattened. More than two numbers
are shown in the plane of their two largest principal components, and how much of their variance
that plane holds is said beside it: what is near in the plane need not be near in the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.errors import InputError
from medgen.grouped_files import Item, SetConfig
from medgen.tasks.labelled_images import Labelled, found_images, read_labelled
from medgen.tasks.representation import BATCH, Representation, vectors_of
from medgen.tasks.trained import Trained

Array = NDArray[np.float64]
# The grid covers the plane between these percentiles of the images.
GRID_PERCENTILES = (1.0, 99.0)
# A latent variable whose posterior mean varies less is not used (Burda et al. 2016).
ACTIVE = 0.01


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane that is shown.

    Attributes:
        origin: A point of it ``(K,)``.
        axes: Two orthonormal directions ``(2, K)``.
        explained: Part of the codes' variance along each; None if codes are two numbers, which
            are shown as they are.
    """

    origin: Array
    axes: Array
    explained: tuple[float, float] | None

    def project(self, codes: Array) -> Array:
        """Codes ``(N, K)`` to places in the plane ``(N, 2)``."""
        return (codes - self.origin) @ self.axes.T

    def lift(self, places: Array) -> Array:
        """Places ``(N, 2)`` to codes ``(N, K)``."""
        return self.origin + places @ self.axes


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """Images in a network's latent space.

    Attributes:
        images: What was coded.
        names: Of their labels; () without labels.
        codes: ``(N, K)``.
        plane: In which they are shown.
        places: In that plane ``(N, 2)``.
        active: How many latent variables vary by more than 0.01; None if the network has no
            posterior.
        device: Where the network computes.
    """

    trained: Trained
    images: Labelled
    names: tuple[str, ...]
    codes: Array
    plane: Plane
    places: Array
    active: int | None
    device: str

    @property
    def decodes(self) -> bool:
        """Whether codes can be made into images."""
        return hasattr(self.trained.method, "decode")

    def decode(self, codes: Array) -> Tensor:
        """Images ``(M, C, *spatial)`` of codes ``(M, K)``."""
        shape = _code_shape(self.trained.method, self.images.images.shape[2:], codes.shape[1])
        parts = torch.from_numpy(codes).float().reshape(-1, *shape).split(BATCH)
        method = self.trained.method.to(self.device).eval()
        with torch.inference_mode():
            return torch.cat([method.decode(part.to(self.device)).float().cpu() for part in parts])


def latent_space(
    trained: Trained, folder: Path, config: Mapping[str, Any], device: str = "cpu"
) -> LatentSpace:
    """Code all images of a folder.

    Args:
        trained: The network.
        folder: Of images, one subfolder per label, or without labels.
        config: Keys of :class:`~medgen.grouped_files.SetConfig`: ``conditions``, ``exclude``.
        device: Where to compute.

    Raises:
        InputError: The network has no latent code, or the images do not fit it.
    """
    _require_code(trained)
    settings = SetConfig.model_validate({"folder": folder, "validation_fraction": 0, **config})
    items, _, names = found_images(settings)
    if len(items) < 3:
        raise InputError(f"a latent space needs at least 3 images, {folder} has {len(items)}")
    images = read_labelled(items, trained)
    codes = codes_of(trained.method, images.images, device)
    plane = plane_of(codes)
    active = None
    if _has_posterior(trained.method):
        active = int((codes.var(0) > ACTIVE).sum())
    return LatentSpace(
        trained, images, names, codes, plane, plane.project(codes), active, device
    )  # fmt: skip


def codes_of(method: Any, images: Tensor, device: str = "cpu") -> Array:
    """Codes ``(N, K)`` float64 of images ``(N, C, *spatial)``."""
    if not hasattr(method, "latent"):
        return np.asarray(vectors_of(Representation(method), images, device).numpy())
    method.to(device).eval()
    with torch.inference_mode():
        parts = [method.latent(part.to(device)).double().cpu() for part in images.split(BATCH)]
    return np.asarray(torch.cat(parts).numpy())


def plane_of(codes: Array) -> Plane:
    """The plane of the two largest principal components; of two numbers that of the numbers.

    Each axis points to where its largest entry is positive, so that a picture does not depend on
    the library that computed it.

    Raises:
        InputError: Codes are single numbers, or all the same.
    """
    count, size = codes.shape
    if size == 2:
        return Plane(np.zeros(2), np.eye(2), None)
    origin = codes.mean(0)
    _, singular, rows = np.linalg.svd(codes - origin, full_matrices=False)
    if size < 2 or count < 3 or not singular[0] > 1e-9 * max(1.0, float(np.abs(codes).max())):
        what = "all codes are the same" if size > 1 else "codes are single numbers"
        raise InputError(f"{what}: there is no plane to show",
                         "Train longer, or with more latent numbers.")  # fmt: skip
    axes = rows[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])
    share = singular**2 / (singular**2).sum()
    return Plane(origin, axes * signs[:, None], (float(share[0]), float(share[1])))


def grid_places(places: Array, steps: int) -> Array:
    """A lattice ``(steps * steps, 2)`` over the images, row by row from the top left."""
    low, high = np.percentile(places, GRID_PERCENTILES, axis=0)
    across, down = np.linspace(low[0], high[0], steps), np.linspace(high[1], low[1], steps)
    return np.array([(x, y) for y in down for x in across])


def ends(space: LatentSpace, wanted: tuple[str, str] | None) -> tuple[int, int]:
    """Numbers of the two images to interpolate between.

    Without a wish they are the images nearest to the mean codes of the first two labels or, without
    labels, those at the ends of the plane's first axis.

    Raises:
        InputError: A file is not among the images, or its name is not unique.
    """
    if wanted is not None:
        return _numbered(space.images.items, wanted[0]), _numbered(space.images.items, wanted[1])
    labels = space.images.labels
    if len(space.names) < 2:
        along = space.places[:, 0]
        return int(along.argmin()), int(along.argmax())
    found = []
    for label in (0, 1):
        numbers = np.flatnonzero(labels == label)
        distance = np.linalg.norm(space.codes[numbers] - space.codes[numbers].mean(0), axis=1)
        found.append(int(numbers[distance.argmin()]))
    return found[0], found[1]


def between(space: LatentSpace, start: int, end: int, steps: int) -> Array:
    """Codes ``(steps, K)`` on the straight line from one image's to another's, both included."""
    part = np.linspace(0, 1, steps)[:, None]
    return (1 - part) * space.codes[start] + part * space.codes[end]


def _numbered(items: Sequence[Item], name: str) -> int:
    found = [n for n, item in enumerate(items) if name in (item.path.name, str(item.path))]
    if len(found) != 1:
        what = "no" if not found else f"{len(found)} images are called"
        msg = f"{what} {name!r}" if found else f"no image is called {name!r}"
        raise InputError(msg, "Give the name of a file of IMAGES with its ending, or its path.")
    return found[0]


def _require_code(trained: Trained) -> None:
    method = trained.method
    if hasattr(method, "generate"):
        raise InputError(
            f"{trained.name} makes images from noise and codes none",
            "`medgen synthesize --grid` shows its latent space.",
        )
    if not hasattr(method, "latent"):
        Representation(method)  # refuses what has no features either


def _has_posterior(method: Any) -> bool:
    """Whether codes are means of Gaussians that a prior holds together."""
    return hasattr(method, "latent") and hasattr(method.config, "beta")


def _code_shape(method: Any, size: Sequence[int], numbers: int) -> tuple[int, ...]:
    """The shape in which ``decode`` takes one code."""
    if method.divisor == 1:  # one vector for the image
        return (numbers,)
    grid = [edge // method.divisor for edge in size]
    return (numbers // int(np.prod(grid)), *grid)
