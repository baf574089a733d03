"""The networks of progressive growing, in 2-D.

Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation" (ICLR
2018). Generator and critic mirror each other. Both are told the level (0 is the coarsest grid) and
the share ``alpha`` of this level, 0..1: below 1 the level fades in over the enlarged one below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.networks.layers import EqualConv, EqualLinear, MinibatchDeviation, PixelNorm

SLOPE = 0.2


def enlarged(image: Tensor) -> Tensor:
    """Every voxel four times: ``(B, C, H, W)`` to ``(B, C, 2 H, 2 W)``."""
    return F.interpolate(image, scale_factor=2, mode="nearest")


def faded(image: Tensor, alpha: float) -> Tensor:
    """Images as a fading level shows them: without a part of their finest detail."""
    if alpha == 1:
        return image
    return torch.lerp(enlarged(F.avg_pool2d(image, 2)), image, alpha)


class ProgressiveGenerator(nn.Module):
    """From a latent and a condition to an image of the size of a level.

    Args:
        latent: Length of the latent.
        conditions: Number of conditions; 0 for none.
        channels: Of the image.
        sizes: Of the levels, from the coarsest on.
        widths: Feature channels of the levels.
    """

    def __init__(
        self,
        latent: int,
        conditions: int,
        channels: int,
        sizes: Sequence[tuple[int, int]],
        widths: Sequence[int],
    ) -> None:
        super().__init__()
        first, inputs = widths[0], latent + conditions
        self.normalise = PixelNorm()
        # The paper's gain: this layer has the fan-in of a convolution on the base grid.
        self.dense = EqualLinear(inputs, first * math.prod(sizes[0]), gain=math.sqrt(2) / 4)
        self.start = nn.Sequential(
            nn.Unflatten(1, (first, *sizes[0])),
            nn.LeakyReLU(SLOPE),
            PixelNorm(),
            *_active(EqualConv(2, first, first)),
        )
        self.levels = nn.ModuleList(
            nn.Sequential(*_active(EqualConv(2, below, here)), *_active(EqualConv(2, here, here)))
            for below, here in pairwise(widths)
        )
        self.to_image = nn.ModuleList(
            EqualConv(2, width, channels, 1, gain=1.0) for width in widths
        )

    def forward(self, latent: Tensor, label: Tensor | None, level: int, alpha: float) -> Tensor:
        """``(B, latent)`` and ``(B, conditions)`` to ``(B, channels, *sizes[level])``.

        Images are about -1..1. Latent and label each get a mean square of 1, so that a long latent
        does not drown the label.
        """
        given = (latent,) if label is None else (latent, label)
        vector = torch.cat([self.normalise(part) for part in given], 1)
        features = self.start(self.dense(vector))
        below = features
        for number in range(level):
            below = features
            features = self.levels[number](enlarged(features))
        image: Tensor = self.to_image[level](features).float()
        if alpha < 1 and level:
            image = torch.lerp(enlarged(self.to_image[level - 1](below).float()), image, alpha)
        return image


class ProgressiveCritic(nn.Module):
    """From an image of the size of a level to one number.

    Args:
        channels: Of the image.
        conditions: Number of conditions, which join the features of the base grid; 0 for none.
        sizes: Of the levels, from the coarsest on.
        widths: Feature channels of the levels.
    """

    def __init__(
        self,
        channels: int,
        conditions: int,
        sizes: Sequence[tuple[int, int]],
        widths: Sequence[int],
    ) -> None:
        super().__init__()
        first = widths[0]
        self.from_image = nn.ModuleList(EqualConv(2, channels, width, 1) for width in widths)
        self.levels = nn.ModuleList(
            nn.Sequential(
                EqualConv(2, here, here),
                nn.LeakyReLU(SLOPE),
                EqualConv(2, here, below),
                nn.LeakyReLU(SLOPE),
                nn.AvgPool2d(2),
            )
            for below, here in pairwise(widths)
        )
        self.deviation = MinibatchDeviation()
        self.last = EqualConv(2, first + 1 + conditions, first)
        self.dense = EqualLinear(first * math.prod(sizes[0]), first, gain=math.sqrt(2))
        self.head = EqualLinear(first, 1)

    def forward(
        self,
        image: Tensor,
        label: Tensor | None,
        level: int,
        alpha: float,
        *,
        parts: int = 1,
    ) -> Tensor:
        """Outputs ``(B,)``, float32.

        Args:
            image: ``(B, channels, *sizes[level])``.
            label: Conditions as vectors ``(B, conditions)``.
            level: Which level's size the image has.
            alpha: Share of this level.
            parts: Equal parts of the batch whose minibatch deviations are taken apart.
        """
        features = F.leaky_relu(self.from_image[level](image), SLOPE)
        for number in range(level, 0, -1):
            features = self.levels[number - 1](features)
            if number == level and alpha < 1:
                coarse = self.from_image[level - 1](F.avg_pool2d(image, 2))
                features = torch.lerp(F.leaky_relu(coarse, SLOPE).to(features), features, alpha)
        with torch.autocast(image.device.type, enabled=False):
            features = torch.cat([self.deviation(p) for p in features.float().chunk(parts)])
            if label is not None:
                places = label[:, :, None, None].expand(-1, -1, *features.shape[2:])
                features = torch.cat([features, places], 1)
            features = F.leaky_relu(self.last(features), SLOPE)
            features = F.leaky_relu(self.dense(features.flatten(1)), SLOPE)
            result: Tensor = self.head(features).squeeze(1)
        return result


def _active(conv: nn.Module) -> tuple[nn.Module, ...]:
    """A convolution of the generator and what follows each of them."""
    return conv, nn.LeakyReLU(SLOPE), PixelNorm()
