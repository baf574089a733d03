"""From a prepared image to its restoration: the one path for use, calibration and verification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.package.files import ModelPackage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from medgen.inference import Predicts

# Where all members of an ensemble agree, the spread is this part of the intensity range: nothing
# that was computed is certain, and a calibration can stretch it.
LEAST_SPREAD = 1e-3


def run_restoration(
    package: ModelPackage,
    image: Tensor,
    mask: Tensor | None = None,
    *,
    method: Predicts | None = None,
    target: str | None = None,
    device: str = "cpu",
    max_memory_gb: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """What a restoration model makes of a prepared image, and how unsure it is.

    Args:
        package: The model.
        image: ``(C, X, Y[, Z])``, scaled as :class:`~medgen.preparation.Preparation` does; for
            inpainting two channels, the image with its hole filled, and the hole.
        mask: ``(1, X, Y[, Z])``, true where a result is wanted; everywhere when None.
        method: The package's network, if it is already loaded.
        target: Which of its contrasts a translation model of several shall make.
        device: A torch device.
        max_memory_gb: Refuse if prediction would need more than this.
        progress: Called with (done, total) parts of the image.

    Returns:
        ``output`` and ``spread`` ``(C', X, Y[, Z])`` float32 in the scale of the image, 0 outside
        the mask. The spread is the predicted scale of the error or, if the network predicts none,
        how far the outputs for the mirrored image lie from that for the image.

    Raises:
        InputError: The image does not fit the model, or needs too much memory.
        PackageError: The package does not fit its method.
    """
    from medgen.inference import predict_volume

    network = restorer(package, method, target)
    if mask is not None and bool(mask.all()):
        mask = None
    maps = predict_volume(
        network, image, mask, package.inference,
        device=device, max_memory_gb=max_memory_gb, progress=progress,
    )  # fmt: skip
    return {name: np.asarray(maps[name]) for name in ("output", "spread")}


def restoration_memory_gb(
    package: ModelPackage,
    shape: Sequence[int],
    *,
    method: Predicts | None = None,
    target: str | None = None,
    max_memory_gb: float | None = None,
) -> float:
    """Peak memory of :func:`run_restoration` in GB, for an image of shape ``(C, X, Y[, Z])``."""
    from medgen.inference import estimate_memory_gb

    need = estimate_memory_gb(restorer(package, method, target), shape, package.inference)
    # Prediction shrinks its batches to fit, or refuses.
    return need if max_memory_gb is None else min(need, max_memory_gb)


def restorer(
    package: ModelPackage, method: Predicts | None = None, target: str | None = None
) -> Predicts:
    """The package's network, told what to make, with a spread of its own or of an ensemble.

    Args:
        package: A restoration model.
        method: Its network, if it is already loaded.
        target: One of its targets, if it is a translation model.

    Raises:
        InputError: The model makes no such target.
    """
    network: Any = method or package.method()
    planes = target_planes(package, target)
    if planes:
        network = _Aimed(network, planes)
    return WithSpread(network)


def target_planes(package: ModelPackage, target: str | None) -> tuple[float, ...]:
    """The one-hot planes that choose a translation's target; empty if there is nothing to choose.

    Raises:
        InputError: The model makes no such target.
    """
    block = package.manifest.restoration
    targets = block.targets if block is not None else ()
    if target is None and len(targets) <= 1:
        return ()
    if target not in targets:
        msg = f"model {package.manifest.name!r} makes no {target!r}"
        raise InputError(msg, f"It makes: {', '.join(targets)}.")
    return tuple(float(name == target) for name in targets) if len(targets) > 1 else ()


class _Wrapped:
    """Another way to ask a network; everything that inference needs besides is the network's."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.divisor: int = network.divisor
        self.spatial_dims: int = network.spatial_dims
        self.input_slices: int = network.input_slices

    def modules(self) -> Iterator[nn.Module]:
        modules: Iterator[nn.Module] = self.network.modules()
        return modules

    def parameters(self) -> Iterator[nn.Parameter]:
        parameters: Iterator[nn.Parameter] = self.network.parameters()
        return parameters

    def eval(self) -> Self:
        self.network.eval()
        return self

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self


class _Aimed(_Wrapped):
    """A translation network that is told its target: constant planes beside every slice."""

    def __init__(self, network: Any, planes: Sequence[float]) -> None:
        super().__init__(network)
        self.planes = planes

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Tiles ``(B, slices * C, *s)``, the planes appended to the channels of each slice."""
        import torch

        slices = image.unflatten(1, (self.input_slices, -1))
        shape = (len(image), self.input_slices, 1, *image.shape[2:])
        planes = [image.new_full((), value).expand(shape) for value in self.planes]
        maps: dict[str, Tensor] = self.network.predict(
            torch.cat([slices, *planes], 2).flatten(1, 2)
        )
        return maps


class Correction(_Wrapped):
    """A network whose output is what it adds to the first channel of the middle slice."""

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Tiles ``(B, slices * C, *s)``; the output is exactly 0 where nothing is changed."""
        maps: dict[str, Tensor] = self.network.predict(image)
        slices = image.unflatten(1, (self.input_slices, -1))
        return {**maps, "output": maps["output"] - slices[:, self.input_slices // 2, :1]}


class WithSpread(_Wrapped):
    """A network whose spread, if it predicts none, is found by mirroring what it sees.

    The output is that of the image as it is. The spread is then the mean absolute deviation from
    it of the outputs for the image mirrored along each axis in turn, mirrored back: test-time
    augmentation (Wang et al., Neurocomputing 2019).
    """

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Tiles ``(B, slices * C, *s)`` to ``output`` and ``spread`` of the same sizes."""
        maps = self.network.predict(image)
        output, spread = maps["output"], maps.get("spread")
        if spread is None:
            axes = range(2, image.ndim)
            spread = sum(
                (self.network.predict(image.flip(axis))["output"].flip(axis) - output).abs()
                for axis in axes
            )
            spread = (spread / len(axes)).clamp(min=LEAST_SPREAD)
        return {"output": output, "spread": spread}
