"""Networks whose restoration of an image is known beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Known(nn.Module):
    """What inference asks of a method; subclasses say what they make of the middle slice."""

    divisor = 4

    def __init__(self, spatial_dims: int = 2, input_slices: int = 1, channels: int = 1) -> None:
        super().__init__()
        self.spatial_dims, self.input_slices, self.channels = spatial_dims, input_slices, channels

    def middle(self, image: Tensor) -> Tensor:
        """Channels of the middle slice ``(B, C, *s)``."""
        first = self.channels * (self.input_slices // 2)
        return image[:, first : first + self.channels]

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class Identity(Known):
    """Returns its input, and is equally unsure everywhere."""

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        output = self.middle(image)[:, :1].clone()
        return {"output": output, "spread": torch.full_like(output, 0.25)}


class Unsure(Known):
    """Returns its input, brighter to one side, and no spread of its own."""

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        ramp = torch.linspace(0, 1, image.shape[2]).reshape(1, 1, -1, *[1] * (image.ndim - 3))
        return {"output": self.middle(image)[:, :1] + ramp}


class Plane(Known):
    """Fills holes with the linear function that fits the known voxels best, and all else too."""

    def __init__(self, spatial_dims: int = 3) -> None:
        super().__init__(spatial_dims, channels=2)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        axes = [torch.linspace(-1, 1, size) for size in image.shape[2:]]
        grid = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(image.shape[2:])])
        columns = grid.flatten(1).T.double()
        filled = []
        for values, hole in image.flatten(2).double():
            known = (hole == 0) & (values != 0)  # outside the foreground everything is 0
            fit = torch.linalg.lstsq(columns[known], values[known, None], driver="gelsd").solution
            filled.append((columns @ fit).reshape(1, *image.shape[2:]))
        output = torch.stack(filled).float()
        return {"output": output, "spread": torch.full_like(output, 0.25)}


def forwards(network: nn.Module) -> Any:
    """Counts how many tiles a network is shown: ``.count``."""

    class Counter:
        count = 0

    counter, original = Counter(), network.predict

    def predict(image: Tensor) -> dict[str, Tensor]:
        if image.device.type != "meta":  # an estimate of memory shows it shapes without values
            counter.count += len(image)
        result: dict[str, Tensor] = original(image)  # type: ignore[operator]
        return result

    network.predict = predict  # type: ignore[assignment]
    return counter
