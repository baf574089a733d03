"""What several networks are made of. ``dims`` is 2 or 3 throughout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from medgen.errors import InputError

CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE_POOL: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
CONVOLUTION: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}
# The coarsest grid of a network is the image halved until an edge would be shorter than this, ...
SMALLEST_BASE = 3
# ... and if it is still longer than this, the size has too few factors of two.
LARGEST_BASE = 8

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def conv(
    dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = True
) -> nn.Module:
    """A convolution that keeps the size, or divides it by ``stride``."""
    padding = (kernel - 1) // 2
    layer: nn.Module = CONV[dims](inputs, outputs, kernel, stride, padding, bias=bias)
    return layer


def halvings(image_size: Sequence[int]) -> int:
    """How often a network can halve this size; the coarsest grid has short edges of 3 to 8.

    Raises:
        InputError: The size is not such a grid times a power of two.
    """
    count = 0
    while all(
        size % 2 ** (count + 1) == 0 and size >> (count + 1) >= SMALLEST_BASE for size in image_size
    ):
        count += 1
    if not image_size or min(image_size) >> count > LARGEST_BASE or count == 0:
        near = tuple(max(8, 2 ** round(math.log2(max(size, 1)))) for size in image_size)
        msg = f"image_size must be a small grid times a power of two, got {tuple(image_size)}"
        raise InputError(msg, f"For example {near}, or an edge of 24, 48, 96 or 192.")
    return count


def one_hot(condition: Tensor, conditions: int) -> Tensor:
    """Numbers ``(B,)`` as vectors ``(B, conditions)`` of float32."""
    # Looked up, because F.one_hot checks its input on the host, which makes a GPU wait.
    return torch.eye(conditions, device=condition.device)[condition]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Record no gradients of the module's parameters inside the block; inputs keep theirs."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value (Miyato et al. 2018).

    One power iteration per forward pass in training. Unlike torch's own, it stays in float32
    under autocast.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(matrix.shape[0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(15):  # so that the first steps see the right value
            self._iterate(matrix)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with norm 1."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            if self.training:
                self._iterate(matrix)
            # Copies: a later pass may iterate before this one has been differentiated.
            sigma: Tensor = self.u.clone() @ (matrix @ self.v.clone())
            return weight / sigma


def spectral(module: AnyModule, on: bool = True) -> AnyModule:
    """The module, its weight kept at norm 1 if ``on``."""
    if on:
        weight: Any = module.weight
        parametrize.register_parametrization(module, "weight", SpectralNorm(weight))
    return module


class EqualConv(nn.Module):
    """Convolution with an equalised learning rate (Karras et al. 2018).

    The weight is standard normal and scaled at run time by ``gain / sqrt(fan_in)``, so that Adam's
    steps, which do not depend on the size of gradients, have the same relative size everywhere.
    """

    def __init__(
        self, dims: int, inputs: int, outputs: int, kernel: int = 3, *, gain: float = math.sqrt(2)
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *(kernel,) * dims))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(inputs * kernel**dims)
        self.padding = kernel // 2
        self.dims = dims

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``."""
        result: Tensor = CONVOLUTION[self.dims](
            image, self.weight * self.scale, self.bias, padding=self.padding
        )
        return result


class EqualLinear(nn.Module):
    """Fully connected layer with an equalised learning rate; see :class:`EqualConv`.

    Args:
        inputs: Length of the input.
        outputs: Length of the output.
        bias: First value of the bias.
        gain: Of the nonlinearity that follows.
        rate: Factor on the learning rate; StyleGAN's mapping network learns at 0.01.
    """

    def __init__(
        self, inputs: int, outputs: int, *, bias: float = 0.0, gain: float = 1.0, rate: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale = gain * rate / math.sqrt(inputs)
        self.rate = rate

    def forward(self, vector: Tensor) -> Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        return F.linear(vector, self.weight * self.scale, self.bias * self.rate)


class PixelNorm(nn.Module):
    """Scales the channels ``(B, C, ...)`` at every place to a mean square of 1 (Karras 2018)."""

    def forward(self, value: Tensor) -> Tensor:
        """Same shape."""
        return value * torch.rsqrt(value.square().mean(1, keepdim=True) + 1e-8)


class MinibatchDeviation(nn.Module):
    """Appends one channel: how much the images of a group differ (Karras et al. 2018).

    A critic that sees it recognises a generator that makes always the same image.

    Args:
        group: Images that are compared with each other; a batch that it does not divide is one
            group.
    """

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group

    def forward(self, value: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to ``(B, C + 1, *spatial)``."""
        batch = len(value)
        group = self.group if batch % self.group == 0 else batch
        groups = value.float().reshape(group, -1, *value.shape[1:])
        deviation = (groups.var(0, correction=0) + 1e-8).sqrt().flatten(1).mean(1)
        channel = deviation.repeat(group).reshape(batch, *(1,) * (value.ndim - 1))
        return torch.cat([value, channel.to(value.dtype).expand(-1, 1, *value.shape[2:])], 1)


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with a scale and shift for each condition (Dumoulin et al. 2017)."""

    def __init__(self, dims: int, channels: int, conditions: int) -> None:
        super().__init__()
        self.norm = BATCH_NORM[dims](channels, affine=False)
        self.scale = nn.Embedding(conditions, channels)
        self.shift = nn.Embedding(conditions, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        """``(B, C, *spatial)`` and ``(B,)`` to ``(B, C, *spatial)``."""
        places = (..., *(None,) * (image.ndim - 2))
        result: Tensor = self.norm(image)
        return result * self.scale(condition)[places] + self.shift(condition)[places]
