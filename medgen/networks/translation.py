"""Networks that turn one kind of image into another: generators, and the critic of their patches.

Generators give raw values ``(B, outputs, *spatial)``, which the method bounds or not. Their norms
take mean and deviation from the one image they see (Ulyanov et al., "Instance Normalization",
2016), so that training with one image per step and prediction do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from medgen.networks.folding import fold, unfold
from medgen.networks.generators import start_small, widths
from medgen.networks.layers import CONV, CONV_TRANSPOSE, conv

INSTANCE_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
# Kernel of a ResNet's first and last layer.
WIDE = 7


class ResNetTranslator(nn.Module):
    """The generator of CycleGAN (Zhu et al. 2017, after Johnson et al. 2016).

    A wide convolution, two halvings, residual blocks at a quarter of the size, two doublings and a
    wide convolution. Padding mirrors the image, so that its border is no edge.

    Args:
        dims: 2 or 3.
        inputs: Image channels.
        outputs: Channels of the result.
        width: Channels at full size (64 in the paper), doubled at each halving.
        blocks: Residual blocks (6 for images of 128, 9 for 256 in the paper).
        folding: Voxels per axis folded into channels before the first layer and unfolded after
            the last.
        planes: Some inputs may be constant, to say which result is wanted. The first layer then
            has no norm: it would take out what is the same everywhere.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        *,
        width: int,
        blocks: int,
        folding: int = 1,
        planes: bool = False,
    ) -> None:
        super().__init__()
        self.folding, self.divisor = folding, 4 * folding
        folded = folding**dims
        first = _step(dims, inputs * folded, width, WIDE)
        if planes:
            layer = _mirrored(dims, inputs * folded, width, WIDE, bias=True)
            first = nn.Sequential(layer, nn.ReLU())
        down = [first]
        down += [_step(dims, width << level, width << level + 1, 3, 2) for level in (0, 1)]
        self.down = nn.Sequential(*down)
        self.blocks = nn.ModuleList(_Residual(dims, 4 * width) for _ in range(blocks))
        up: list[nn.Module] = []
        for level in (1, 0):
            given, made = width << level + 1, width << level
            double = CONV_TRANSPOSE[dims](given, made, 3, 2, 1, 1, bias=False)
            up += [double, INSTANCE_NORM[dims](made), nn.ReLU()]
        up.append(_mirrored(dims, width, outputs * folded, WIDE, bias=True))
        self.up = nn.Sequential(*up)
        start_small(self)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``, without bounds."""
        return self.decode(self.encode(image)[-1])

    def encode(self, image: Tensor, stages: int | None = None) -> list[Tensor]:
        """The folded image, and features behind the first (else all) halvings and blocks."""
        value = fold(image, self.folding)
        found = [value]
        for stage in (*self.down, *self.blocks)[:stages]:
            value = stage(value)
            found.append(value)
        return found

    def decode(self, features: Tensor) -> Tensor:
        """The result from the features behind the last block."""
        return unfold(self.up(features), self.folding)


class UNetTranslator(nn.Module):
    """The generator of pix2pix (Isola et al., CVPR 2017): each level has a skip connection.

    Halvings by convolutions of width 4, down to the coarsest grid that the divisor allows, and as
    many doublings. Dropout behind the first three doublings is the paper's only noise.

    Args:
        dims: 2 or 3.
        inputs: Image channels.
        outputs: Channels of the result.
        features: Channels after each halving (64, 128, 256, 512, ... in the paper).
        dropout: Probability of dropping a value while training.
    """

    def __init__(
        self, dims: int, inputs: int, outputs: int, *, features: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.divisor = 2 ** len(features)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for number, (a, b) in enumerate(pairwise((inputs, *features))):
            # At the bottom there may be one voxel, which has no deviation.
            normal = 0 < number < len(features) - 1
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if number else []
            layers.append(conv(dims, a, b, 4, 2, bias=not normal))
            if normal:
                layers.append(INSTANCE_NORM[dims](b))
            self.down.append(nn.Sequential(*layers))
        for number, level in enumerate(reversed(range(len(features)))):
            given = features[level] * (2 if number else 1)
            made = features[level - 1] if level else outputs
            layers = [nn.ReLU(), CONV_TRANSPOSE[dims](given, made, 4, 2, 1, bias=not level)]
            if level:
                layers.append(INSTANCE_NORM[dims](made))
            if level and number < 3:
                layers.append(nn.Dropout(dropout))
            self.up.append(nn.Sequential(*layers))
        start_small(self)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``, without bounds."""
        found: list[Tensor] = []
        for layer in self.down:
            image = layer(image)
            found.append(image)
        value = self.up[0](found.pop())
        for layer in self.up[1:]:
            value = layer(torch.cat([value, found.pop()], dim=1))
        return value


class PatchGAN(nn.Module):
    """Judges overlapping patches of an image (Isola et al., CVPR 2017).

    Args:
        dims: 2 or 3.
        inputs: Channels of what it sees.
        width: Channels after the first halving (64 in the paper), doubled at every further layer
            up to eight times.
        layers: Halvings; 3 make patches of 70 voxels a side, 2 of 34, 1 of 16.
        normal: Instance norm in all layers but the first and the last.
        offset: Whether its outputs have one; to a loss of differences it would mean nothing.
        classes: Also tell which of so many domains the whole image is from (StarGAN).
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        *,
        width: int,
        layers: int = 3,
        normal: bool = True,
        offset: bool = True,
        classes: int = 0,
    ) -> None:
        super().__init__()
        outputs = widths(width, layers)
        self.layers = nn.ModuleList()
        for number, (a, b) in enumerate(pairwise((inputs, *outputs))):
            here = normal and number > 0
            norm = [INSTANCE_NORM[dims](b)] if here else []
            # The last one has no stride.
            step = conv(dims, a, b, 4, 2 if number < layers else 1, bias=not here)
            self.layers.append(nn.Sequential(step, *norm, nn.LeakyReLU(0.2)))
        self.judge = conv(dims, outputs[-1], 1, 4, bias=offset)
        self.classify = nn.Linear(outputs[-1], classes) if classes else None
        # Norms undo how small the first weights are. Without them each layer shrinks what it is
        # given, until the last ones see nothing.
        if normal:
            start_small(self)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One raw output for every patch ``(B, 1, *patches)``, and every layer's features."""
        found = []
        for layer in self.layers:
            image = layer(image)
            found.append(image)
        return self.judge(image).float(), found


class _Residual(nn.Module):
    """Two convolutions with norms, whose result is added to the input."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        first, second = (list(_step(dims, channels, channels, 3)) for _ in range(2))
        self.layers = nn.Sequential(*first, *second[:-1])

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = value + self.layers(value)
        return result


def _step(dims: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    if stride == 1:
        layer = _mirrored(dims, inputs, outputs, kernel, bias=False)
    else:
        layer = conv(dims, inputs, outputs, kernel, stride, bias=False)
    return nn.Sequential(layer, INSTANCE_NORM[dims](outputs), nn.ReLU())


def _mirrored(dims: int, inputs: int, outputs: int, kernel: int, *, bias: bool) -> nn.Module:
    """A convolution that sees the image mirrored at its border."""
    layer: nn.Module = CONV[dims](
        inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect", bias=bias
    )
    return layer
