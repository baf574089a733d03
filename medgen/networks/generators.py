"""Generators: from a latent vector, and a condition if there is one, to an image in -1..1.

Each is called as ``generator(latent (B, latent), condition (B,) or None)`` and gives
``(B, channels, *image_size)``. ``image_size`` is a small grid times a power of two (see
:func:`medgen.networks.layers.halvings`); ``width`` is the number of channels at full size, doubled
at every halving up to eight times.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from medgen.networks.layers import (
    BATCH_NORM,
    CONV_TRANSPOSE,
    ConditionalBatchNorm,
    conv,
    halvings,
    one_hot,
    spectral,
)

WIDEST = 8  # times the width


def widths(width: int, count: int) -> list[int]:
    """Channels at full size and after each of ``count`` halvings."""
    return [width * min(2**number, WIDEST) for number in range(count + 1)]


def with_condition(latent: Tensor, condition: Tensor | None, conditions: int) -> Tensor:
    """The latent with the condition as a one-hot vector behind it (Mirza and Osindero 2014)."""
    if not conditions:
        return latent
    assert condition is not None
    return torch.cat([latent, one_hot(condition, conditions)], 1)


class MLPGenerator(nn.Module):
    """Fully connected: three hidden layers with ReLU, tanh (after Goodfellow et al. 2014)."""

    def __init__(
        self, latent: int, channels: int, image_size: Sequence[int], width: int, conditions: int
    ) -> None:
        super().__init__()
        self.conditions = conditions
        sizes = (channels, *image_size)
        layers: list[nn.Module] = []
        inputs = latent + conditions
        for _ in range(3):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.layers = nn.Sequential(
            *layers, nn.Linear(width, prod(sizes)), nn.Tanh(), nn.Unflatten(1, sizes)
        )

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """See the module."""
        images: Tensor = self.layers(with_condition(latent, condition, self.conditions))
        return images


class DCGANGenerator(nn.Module):
    """DCGAN (Radford et al. 2016): transposed convolutions, batch normalisation, ReLU, tanh.

    Every layer doubles the size; the last has no batch normalisation. Weights start as
    N(0, 0.02).
    """

    def __init__(
        self,
        dims: int,
        latent: int,
        channels: int,
        image_size: Sequence[int],
        width: int,
        conditions: int,
        *,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.conditions = conditions
        count = halvings(image_size)
        base = tuple(size >> count for size in image_size)
        features = widths(width, count - 1)[::-1]
        up = CONV_TRANSPOSE[dims]
        first = up(latent + conditions, features[0], base, bias=False)
        layers: list[nn.Module] = [first, BATCH_NORM[dims](features[0]), nn.ReLU()]
        for inputs, outputs in pairwise(features):
            layers += [up(inputs, outputs, 4, 2, 1, bias=False), BATCH_NORM[dims](outputs)]
            layers += [nn.ReLU()]
        layers += [up(features[-1], channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.dims = dims
        start_small(self)
        for layer in self.layers:
            if isinstance(layer, up):
                spectral(layer, spectral_norm)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """See the module."""
        return self.decode(with_condition(latent, condition, self.conditions))

    def decode(self, vector: Tensor) -> Tensor:
        """Images of vectors ``(B, latent + conditions)``, a condition's number being one-hot."""
        images: Tensor = self.layers(vector[(..., *(None,) * self.dims)])
        return images


class ResNetGenerator(nn.Module):
    """Residual generator of WGAN-GP, SNGAN and the projection discriminator.

    Gulrajani et al. (2017); Miyato et al. (2018); Miyato and Koyama (2018), from whom it takes the
    condition through conditional batch normalisation.
    """

    def __init__(
        self,
        dims: int,
        latent: int,
        channels: int,
        image_size: Sequence[int],
        width: int,
        conditions: int,
        *,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        count = halvings(image_size)
        self.base = tuple(size >> count for size in image_size)
        features = widths(width, count)[::-1]
        self.first = spectral(nn.Linear(latent, features[0] * prod(self.base)), spectral_norm)
        self.blocks = nn.ModuleList(
            _UpBlock(dims, inputs, outputs, conditions, spectral_norm)
            for inputs, outputs in pairwise(features)
        )
        self.norm = BATCH_NORM[dims](features[-1])
        self.last = spectral(conv(dims, features[-1], channels), spectral_norm)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """See the module."""
        image = self.first(latent).reshape(len(latent), -1, *self.base)
        for block in self.blocks:
            image = block(image, condition)
        return torch.tanh(self.last(torch.relu(self.norm(image))))


class _UpBlock(nn.Module):
    """Doubles the size: norm, ReLU, enlarge, convolve, norm, ReLU, convolve; plus a shortcut."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, conditions: int, spectral_norm: bool
    ) -> None:
        super().__init__()
        self.conditions = conditions

        def norm(channels: int) -> nn.Module:
            if conditions:
                return ConditionalBatchNorm(dims, channels, conditions)
            return BATCH_NORM[dims](channels)

        self.norms = nn.ModuleList([norm(inputs), norm(outputs)])
        first = conv(dims, inputs, outputs, bias=False)  # the norm behind it has a shift
        self.convs = nn.ModuleList([first, conv(dims, outputs, outputs)])
        self.shortcut = conv(dims, inputs, outputs, 1, bias=False)
        self.enlarge = nn.Upsample(scale_factor=2)
        for layer in (*self.convs, self.shortcut):
            spectral(layer, spectral_norm)

    def forward(self, image: Tensor, condition: Tensor | None) -> Tensor:
        given = (condition,) if self.conditions else ()
        inside = self.enlarge(torch.relu(self.norms[0](image, *given)))
        inside = torch.relu(self.norms[1](self.convs[0](inside), *given))
        # A 1 x 1 convolution and an enlargement by copying can change places.
        result: Tensor = self.convs[1](inside) + self.enlarge(self.shortcut(image))
        return result


@torch.no_grad()
def start_small(network: nn.Module) -> None:
    """DCGAN's first weights: N(0, 0.02), and N(1, 0.02) for the scale of batch normalisation."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        elif isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
