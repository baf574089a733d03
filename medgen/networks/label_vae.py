"""A convolutional variational autoencoder of label maps, conditional on a class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from medgen.networks.layers import conv

# Channels between the convolutions and the latent vector.
NECK = 8


class LabelEncoder(nn.Module):
    """One-hot label maps to mean and log-variance of their latent vectors.

    Args:
        dims: 2 or 3.
        labels: Number of label values.
        size: Spatial size; a multiple of ``2 ** len(features)``.
        features: Channels after each halving of the size.
        latent: Length of the latent vector.
        conditions: Number of classes; 0 for none.
    """

    def __init__(
        self,
        dims: int,
        labels: int,
        size: Sequence[int],
        features: Sequence[int],
        latent: int,
        conditions: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((labels, *features)):
            layers += [conv(dims, a, b, 4, 2), nn.LeakyReLU(0.2)]
        layers += [conv(dims, features[-1], NECK, 1), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        numbers = NECK * prod(n // 2 ** len(features) for n in size)
        self.head = nn.Linear(numbers + conditions, 2 * latent)

    def forward(self, one_hot: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``(B, latent)``; ``condition`` is one-hot ``(B, conditions)``."""
        both = self.head(torch.cat([self.body(one_hot), condition], dim=1)).float()
        mean, logvar = both.chunk(2, dim=1)
        return mean, logvar.clamp(-10, 10)


class LabelDecoder(nn.Module):
    """Latent vectors to logits of label maps; arguments as for :class:`LabelEncoder`."""

    def __init__(
        self,
        dims: int,
        labels: int,
        size: Sequence[int],
        features: Sequence[int],
        latent: int,
        conditions: int,
    ) -> None:
        super().__init__()
        self.latent = latent
        small = tuple(n // 2 ** len(features) for n in size)
        self.head = nn.Sequential(
            nn.Linear(latent + conditions, NECK * prod(small)),
            nn.Unflatten(1, (NECK, *small)),
            conv(dims, NECK, features[-1], 1),
            nn.LeakyReLU(0.2),
        )
        widths = (*reversed(features), features[0])
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Upsample(scale_factor=2), conv(dims, a, b), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, conv(dims, widths[-1], labels))

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Logits ``(B, labels, *size)``, float32; ``condition`` is one-hot ``(B, conditions)``."""
        logits: Tensor = self.body(self.head(torch.cat([latent, condition], dim=1))).float()
        return logits
