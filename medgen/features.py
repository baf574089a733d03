"""Feature extractors: named, hashed and local. Nothing is downloaded, ever.

The shipped one is the package ``medgen-features``, trained self-supervised on public medical
images. A user's own network comes as TorchScript, or as safetensors of a ``selfsup`` training run,
and only together with its SHA-256: a TorchScript file holds code, so it is opened only if it is the
very file that the user meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.run_record import hash_file

DEFAULT = "medgen-features"
BATCH = 64


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """Images to feature vectors.

    Attributes:
        name: For tables.
        sha256: Identity of the weights; numbers are comparable only if it is equal.
        dimension: Length of a feature vector.
        image_size: Side of the square that images are resized to, in pixels.
        mean: Subtracted from each of the three channels of an image scaled to 0..1, then
        std: divided by this; None leaves images in -1..1.
    """

    name: str
    sha256: str
    dimension: int
    image_size: int
    network: Callable[[Tensor], Tensor] = field(repr=False)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def preprocessing(self) -> str:
        """What is done to an image, in words."""
        scale = "in -1..1"
        if self.mean is not None:
            scale = f"scaled to 0..1, less {list(self.mean)}, divided by {list(self.std or ())}"
        return (
            f"grey repeated to 3 channels; resized to {self.image_size} x {self.image_size} "
            f"(bilinear, antialiased); {scale}; volumes: mean of the features of all slices along "
            "the last axis"
        )

    def describe(self) -> dict[str, Any]:
        """What belongs beside every number: name, hash, dimension, preprocessing."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "dimension": self.dimension,
            "preprocessing": self.preprocessing,
        }

    @classmethod
    def load(cls, name_or_path: str | Path = DEFAULT) -> FeatureExtractor:
        """The extractor of a model package.

        Raises:
            PackageError: No such package, or one whose task is not ``features``.
        """
        from medgen.package import load_package

        package = load_package(name_or_path, "features")
        return cls.of_method(package.method(), package.manifest.name, package.sha256)

    @classmethod
    def of_method(cls, method: Any, name: str, sha256: str) -> FeatureExtractor:
        """The extractor of a trained ``selfsup`` method."""
        method.eval()
        return cls(name, sha256, method.dimension, method.view_size, method.features)

    @classmethod
    def from_file(
        cls,
        path: Path,
        sha256: str,
        *,
        image_size: int = 299,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> FeatureExtractor:
        """A user's own network: TorchScript, or ``weights.safetensors`` of a ``selfsup`` run.

        Args:
            path: The file. Safetensors need the run's ``training.json`` beside them, and then
                bring their own image size and scale.
            sha256: What the file's hash must be.
            image_size: What the network takes.
            mean: Of each channel of 0..1 images, subtracted.
            std: Of each channel, divided by.

        Raises:
            InputError: No such file, another hash, or not a network from images to vectors.
        """
        if not path.is_file():
            raise InputError(f"there is no feature extractor at {path}")
        found = hash_file(path)
        if found != sha256.strip().lower():
            msg = f"{path} has SHA-256 {found}, but {sha256} was asked for"
            raise InputError(msg, "Use the file that belongs to this hash; do not run this one.")
        if path.suffix == ".safetensors":
            return cls.of_method(_trained_method(path), path.stem, found)
        network = _torchscript(path)
        with torch.inference_mode():
            output = _checked(network, torch.zeros(2, 3, image_size, image_size), path)
        return cls(path.stem, found, output.shape[1], image_size, network, mean, std)

    def __call__(
        self, images: NDArray[np.floating[Any]] | Tensor, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        """Features ``(N, dimension)`` of images ``(N, C, *spatial)`` in -1..1, C 1 or 3.

        Raises:
            InputError: Wrong number of axes or channels.
        """
        values = torch.as_tensor(images)
        if values.ndim not in (4, 5) or values.shape[1] not in (1, 3):
            msg = f"images must be (N, 1 or 3, X, Y[, Z]), got {tuple(values.shape)}"
            raise InputError(msg)
        if isinstance(self.network, torch.nn.Module):
            self.network.to(device)
        elif isinstance(owner := getattr(self.network, "__self__", None), torch.nn.Module):
            owner.to(device)
        with torch.inference_mode():
            if values.ndim == 4:
                return self._of_slices(values, device)
            # Whole volumes at a time, so that memory does not grow with their number.
            rows = [self._of_slices(v.movedim(-1, 0), device).mean(0) for v in values]
        return np.stack(rows) if rows else np.zeros((0, self.dimension))

    def _of_slices(self, images: Tensor, device: str) -> NDArray[np.float64]:
        found = [self._features(part.to(device)) for part in images.split(BATCH)]
        if not found:
            return np.zeros((0, self.dimension))
        return torch.cat(found).numpy()

    def _features(self, images: Tensor) -> Tensor:
        values = images.float().expand(-1, 3, -1, -1)
        if tuple(values.shape[2:]) != (self.image_size, self.image_size):
            values = F.interpolate(
                values, (self.image_size, self.image_size), mode="bilinear", antialias=True
            )
        if self.mean is not None:
            shape = (1, 3, 1, 1)
            mean = torch.tensor(self.mean, device=values.device).reshape(shape)
            std = torch.tensor(self.std, device=values.device).reshape(shape)
            values = ((values + 1) / 2 - mean) / std
        return self.network(values).double().cpu()


def _torchscript(path: Path) -> Any:
    try:
        network = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        msg = f"{path} is neither TorchScript nor safetensors: {reason}"
        raise InputError(
            msg, "Save the network with torch.jit.script(network).save(...)."
        ) from error
    return network.eval()


def _checked(network: Any, image: Tensor, path: Path) -> Tensor:
    """What a network makes of two images: must be ``(2, D)``."""
    try:
        output = network(image)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        msg = f"{path} does not take images {tuple(image.shape)}: {reason}"
        raise InputError(msg, "Give the size it takes with --features-size.") from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(image):
        raise InputError(f"{path} must give one vector per image (N, D)")
    return output


def _trained_method(path: Path) -> Any:
    """The method that a training run left in this folder."""
    from safetensors.torch import load_file

    from medgen.methods import build

    record = path.parent / "training.json"
    try:
        config = json.loads(record.read_text(encoding="utf-8"))["config"]
        method: Any = build(config["method"], config["config"])
        method.load_state_dict(load_file(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        msg = f"{path} is not the result of a training run of the method selfsup: {error}"
        raise InputError(msg, "It needs training.json of the same run beside it.") from error
    if not hasattr(method, "features"):
        raise InputError(f"method {config['method']!r} of {path} gives no features; use selfsup")
    return method
