"""Critics of autoencoders: one of images of any size, and one of latent codes.

Both give one raw number for each image or code ``(B,)``, before any sigmoid. No norm mixes the
images of a batch, so that both can be given a gradient penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from medgen.errors import InputError
from medgen.networks.layers import conv

SLOPE = 0.2


class ImageCritic(nn.Module):
    """Strided convolutions like the encoder's, and the mean of a verdict at every place left.

    Layer normalisation (all channels of an image at once) in all layers but the first, as Gulrajani
    et al. (2017) advise beside their penalty.

    Args:
        dims: 2 or 3.
        channels: Channels of the images.
        features: Channels after each halving of the size.
        offset: Whether its numbers have one; to a loss of differences it would mean nothing.
    """

    def __init__(
        self, dims: int, channels: int, features: Sequence[int], *, offset: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (a, b) in enumerate(pairwise((channels, *features))):
            norm = nn.GroupNorm(1, b) if number else nn.Identity()
            layers += [conv(dims, a, b, 4, 2), norm, nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers)
        self.halvings = len(features)
        self.judge = nn.Linear(features[-1], 1, bias=offset)

    def forward(self, image: Tensor) -> Tensor:
        """Verdicts ``(B,)`` of images ``(B, C, *spatial)``."""
        return self.verdict(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """What the last hidden layer sees ``(B, features[-1], *spatial / 2^n)``, in float32.

        Raises:
            InputError: The image is too small to be halved n times.
        """
        smallest = 2**self.halvings
        if min(image.shape[2:]) < smallest:
            msg = (
                f"this critic takes images from {smallest} voxels on, got {tuple(image.shape[2:])}"
            )
            raise InputError(msg, "Give critic_features fewer numbers.")
        features: Tensor = self.body(image)
        return features.float()

    def verdict(self, features: Tensor) -> Tensor:
        """Verdicts ``(B,)`` of what :meth:`features` gives."""
        with torch.autocast(features.device.type, enabled=False):
            verdicts: Tensor = self.judge(features.flatten(2).mean(2))
        return verdicts[:, 0]


class CodeCritic(nn.Module):
    """Fully connected, two hidden layers (Makhzani et al. 2016).

    Args:
        latent: Length of a code.
        width: Units of a hidden layer.
        offset: Whether its numbers have one; to a loss of differences it would mean nothing.
    """

    def __init__(self, latent: int, width: int, *, offset: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, 1, bias=offset),
        )

    def forward(self, code: Tensor) -> Tensor:
        """Verdicts ``(N,)`` of codes ``(N, latent)``, in float32."""
        verdicts: Tensor = self.layers(code)
        return verdicts[:, 0].float()


def codes(latent: Tensor) -> Tensor:
    """Every code of ``(B, K[, *grid])`` as a row ``(N, K)``; a grid has one at each place."""
    return latent.movedim(1, -1).reshape(-1, latent.shape[1])
