"""Discriminators, or critics: from an image, and a condition if there is one, to a number.

A critic is a body that turns images into features, and heads that judge them: how real, and with
an auxiliary classifier which condition. The number is a raw output, before any sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from medgen.networks.generators import start_small, widths
from medgen.networks.layers import (
    AVERAGE_POOL,
    BATCH_NORM,
    conv,
    halvings,
    one_hot,
    spectral,
)

Conditioning = Literal["none", "concatenation", "auxiliary", "projection"]
Norm = Literal["batch", "layer", "none"]


class Verdict(NamedTuple):
    """What a critic says of images.

    Attributes:
        real: How real each image looks ``(B,)``; the loss says what is real.
        classes: Logits of the conditions ``(B, K)``, with an auxiliary classifier.
    """

    real: Tensor
    classes: Tensor | None


class Critic(nn.Module):
    """A body with its heads.

    Args:
        body: Makes the body for a number of image channels; the body has ``features``, the length
            of what it gives.
        channels: Channels of the images.
        conditions: Number of conditions, 0 for none.
        conditioning: How the critic learns of the condition: as constant channels behind the image
            (``concatenation``; Mirza and Osindero 2014), not at all but having to guess it
            (``auxiliary``; Odena et al. 2017), or as the vector it projects its features on
            (``projection``; Miyato and Koyama 2018).
        offset: Whether the number has one; to a loss of differences it would mean nothing.
        spectral_norm: Keep the heads at norm 1.
    """

    def __init__(
        self,
        body: Callable[[int], nn.Module],
        channels: int,
        conditions: int,
        conditioning: Conditioning,
        *,
        offset: bool = True,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conditions, self.conditioning = conditions, conditioning
        self.body = body(channels + (conditions if conditioning == "concatenation" else 0))
        features: int = self.body.features  # type: ignore[assignment]
        self.judge = spectral(nn.Linear(features, 1, bias=offset), spectral_norm)
        if conditioning == "auxiliary":
            self.classify = spectral(nn.Linear(features, conditions), spectral_norm)
        if conditioning == "projection":
            self.embed = spectral(nn.Embedding(conditions, features), spectral_norm)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Verdict:
        """Judge images ``(B, C, *spatial)`` of conditions ``(B,)``."""
        if self.conditioning == "concatenation":
            assert condition is not None
            maps = one_hot(condition, self.conditions)[(..., *(None,) * (image.ndim - 2))]
            image = torch.cat([image, maps.to(image.dtype).expand(-1, -1, *image.shape[2:])], 1)
        features = self.body(image).float()
        with torch.autocast(image.device.type, enabled=False):  # the heads need every digit
            real = self.judge(features)[:, 0]
            if self.conditioning == "projection":
                real = real + (self.embed(condition) * features).sum(1)
            auxiliary = self.conditioning == "auxiliary"
            return Verdict(real, self.classify(features) if auxiliary else None)


class MLPBody(nn.Module):
    """Fully connected: three hidden layers with leaky ReLU."""

    def __init__(
        self, channels: int, image_size: Sequence[int], width: int, *, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        self.features = width
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = channels * prod(image_size)
        for _ in range(3):
            layers += [spectral(nn.Linear(inputs, width), spectral_norm), nn.LeakyReLU(0.2)]
            inputs = width
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to ``(B, features)``."""
        features: Tensor = self.layers(image)
        return features


class DCGANBody(nn.Module):
    """DCGAN (Radford et al. 2016): strided convolutions, batch normalisation, leaky ReLU 0.2.

    No normalisation at the input. The paper's last convolution covers the whole remaining grid,
    which is the linear head of :class:`Critic` on these features.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        image_size: Sequence[int],
        width: int,
        *,
        norm: Norm = "batch",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        count = halvings(image_size)
        outputs = widths(width, count - 1)
        self.features = outputs[-1] * prod(size >> count for size in image_size)
        layers: list[nn.Module] = []
        for number, (a, b) in enumerate(zip([channels, *outputs], outputs, strict=False)):
            normalised = norm != "none" and number > 0
            layers.append(conv(dims, a, b, 4, 2, bias=not normalised))
            if normalised:
                layers.append(BATCH_NORM[dims](b) if norm == "batch" else nn.GroupNorm(1, b))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Flatten())
        start_small(self)
        for layer in self.layers:
            if isinstance(layer, nn.modules.conv._ConvNd):
                spectral(layer, spectral_norm)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to ``(B, features)``."""
        features: Tensor = self.layers(image)
        return features


class ResNetBody(nn.Module):
    """Residual critic of SNGAN (Miyato et al. 2018), without any normalisation of activations.

    The features are summed over the coarsest grid.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        image_size: Sequence[int],
        width: int,
        *,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        outputs = widths(width, halvings(image_size) - 1)
        self.features = outputs[-1]
        self.blocks = nn.Sequential(
            *[
                _DownBlock(dims, a, b, spectral_norm, first=number == 0)
                for number, (a, b) in enumerate(zip([channels, *outputs], outputs, strict=False))
            ]
        )

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to ``(B, features)``."""
        features: Tensor = torch.relu(self.blocks(image)).flatten(2).sum(2)
        return features


class _DownBlock(nn.Module):
    """Halves the size: ReLU (not on an image), convolve, ReLU, convolve, pool; plus a shortcut."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, spectral_norm: bool, *, first: bool
    ) -> None:
        super().__init__()
        self.first = first
        self.convs = nn.ModuleList([conv(dims, inputs, outputs), conv(dims, outputs, outputs)])
        self.shortcut = conv(dims, inputs, outputs, 1, bias=False)
        self.pool = AVERAGE_POOL[dims](2)
        for layer in (*self.convs, self.shortcut):
            spectral(layer, spectral_norm)

    def forward(self, image: Tensor) -> Tensor:
        inside = self.convs[0](image if self.first else torch.relu(image))
        inside = self.pool(self.convs[1](torch.relu(inside)))
        # A 1 x 1 convolution and an average can change places.
        result: Tensor = inside + self.shortcut(self.pool(image))
        return result
