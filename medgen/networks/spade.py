"""Networks that turn a label map into an image (Park et al., "Semantic Image Synthesis with
Spatially-Adaptive Normalization", CVPR 2019), for 2-D and 3-D.

Three things differ from the paper. The norm is instance norm, not batch norm, so that an image
does not depend on its batch and small 3-D batches do not blur the statistics. The style (latent
vector and condition) also enters the modulation, as a bias beside the labels, because one label
looks different in another contrast. And shortcuts have a 1x1 convolution without its own norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.networks.layers import AVERAGE_POOL, conv, spectral

NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
# Channels of the coarsest grid, right behind the style vector.
SEED = 8


class SpatiallyAdaptiveNorm(nn.Module):
    """Normalise without parameters, then scale and shift by what stands in the label map.

    Args:
        dims: 2 or 3.
        channels: Of the features.
        hidden: Channels of the modulation (see :class:`Modulation`).
    """

    def __init__(self, dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = NORM[dims](channels)
        self.scale_shift = conv(dims, hidden, 2 * channels)

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """``norm(features) * (1 + scale) + shift`` with maps from the modulation."""
        scale, shift = self.scale_shift(modulation).chunk(2, dim=1)
        normal: Tensor = self.norm(features)
        return normal * (1 + scale) + shift


class Modulation(nn.Module):
    """One-hot labels and style to the features that modulate one block."""

    def __init__(self, dims: int, labels: int, style: int, hidden: int) -> None:
        super().__init__()
        self.of_labels = conv(dims, labels, hidden)
        self.of_style = nn.Linear(style, hidden)

    def forward(self, one_hot: Tensor, style: Tensor) -> Tensor:
        """``(B, hidden, *spatial)``; the style is the same everywhere."""
        bias = self.of_style(style)
        places: Tensor = self.of_labels(one_hot)
        return F.relu(places + bias.view(*bias.shape, *[1] * (places.ndim - 2)))


class Block(nn.Module):
    """A residual block whose two norms are modulated by labels and style."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, labels: int, style: int, hidden: int
    ) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.modulation = Modulation(dims, labels, style, hidden)
        self.first_norm = SpatiallyAdaptiveNorm(dims, inputs, hidden)
        self.first = conv(dims, inputs, middle)
        self.second_norm = SpatiallyAdaptiveNorm(dims, middle, hidden)
        self.second = conv(dims, middle, outputs)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else conv(dims, inputs, outputs, 1, bias=False)

    def forward(self, features: Tensor, one_hot: Tensor, style: Tensor) -> Tensor:
        """Features ``(B, outputs, *spatial)``; ``one_hot`` must have the same spatial size."""
        modulation = self.modulation(one_hot, style)
        out = self.first(F.leaky_relu(self.first_norm(features, modulation), 0.2))
        out = self.second(F.leaky_relu(self.second_norm(out, modulation), 0.2))
        added: Tensor = self.shortcut(features) + out
        return added


class SpadeGenerator(nn.Module):
    """Grows an image from a small grid; every block sees the labels at its own resolution.

    Args:
        dims: 2 or 3.
        channels: Of the image.
        labels: Number of label values.
        size: Spatial size; a multiple of ``2 ** (len(features) - 1)``.
        features: Channels from the coarsest resolution to the finest.
        latent: Length of the latent vector.
        conditions: Number of classes; 0 for none.
        hidden: Channels of the modulations, and length of the style vector.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        labels: int,
        size: Sequence[int],
        features: Sequence[int],
        latent: int,
        conditions: int,
        hidden: int,
    ) -> None:
        super().__init__()
        grid = tuple(n // 2 ** (len(features) - 1) for n in size)
        self.of_latent = nn.Linear(latent, hidden)
        # Standard normal at first, so stronger than the latent: what the condition can tell, the
        # style is not to tell.
        self.of_condition = nn.Parameter(torch.randn(conditions, hidden))
        self.style = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2))
        self.seed = nn.Sequential(
            nn.Linear(hidden, SEED * prod(grid)), nn.Unflatten(1, (SEED, *grid))
        )
        self.first = conv(dims, SEED, features[0])
        pairs = [(features[0], features[0]), *pairwise(features)]
        self.blocks = nn.ModuleList(Block(dims, a, b, labels, hidden, hidden) for a, b in pairs)
        self.last = conv(dims, features[-1], channels)

    def forward(self, one_hot: Tensor, latent: Tensor, condition: Tensor) -> Tensor:
        """Images ``(B, C, *size)`` in -1..1.

        Args:
            one_hot: Labels ``(B, labels, *size)``.
            latent: ``(B, latent)``.
            condition: One-hot ``(B, conditions)``.
        """
        style = self.style(self.of_latent(latent) + condition @ self.of_condition)
        features = self.first(self.seed(style))
        for number, block in enumerate(self.blocks):
            if number:
                features = F.interpolate(features, scale_factor=2)
            small = F.interpolate(one_hot, size=features.shape[2:])
            features = block(features, small, style)
        return torch.tanh(self.last(F.leaky_relu(features, 0.2)).float())


class PatchCritic(nn.Module):
    """Judges overlapping patches (Isola et al., CVPR 2017), with spectral norm in every layer.

    All strided layers but the first are followed by a norm without parameters: spectral norm alone
    leaves features, and so the distance to match, very small. It is one norm over all channels, not
    the paper's instance norm, which would hide how bright a flat region is.
    """

    def __init__(self, dims: int, inputs: int, features: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for number, (a, b) in enumerate(pairwise((inputs, *features))):
            norm = nn.GroupNorm(1, b, affine=False) if number else nn.Identity()
            strided = spectral(conv(dims, a, b, 4, 2))
            self.layers.append(nn.Sequential(strided, norm, nn.LeakyReLU(0.2)))
        # Under the hinge loss a bias has no gradient until the first patches are told apart.
        self.last = spectral(conv(dims, features[-1], 1, bias=False))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits ``(B, 1, *patches)`` and the features behind every layer, all float32."""
        found = []
        for layer in self.layers:
            image = layer(image)
            found.append(image.float())
        return self.last(image).float(), found


class MultiScaleCritic(nn.Module):
    """Patch critics that see the image at full, half, ... resolution (Wang et al., CVPR 2018)."""

    def __init__(self, dims: int, inputs: int, features: Sequence[int], scales: int) -> None:
        super().__init__()
        self.critics = nn.ModuleList(PatchCritic(dims, inputs, features) for _ in range(scales))
        self.pool = AVERAGE_POOL[dims](2)

    def forward(self, image: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """What :class:`PatchCritic` gives, for each scale from fine to coarse."""
        found = []
        for critic in self.critics:
            found.append(critic(image))
            image = self.pool(image)
        return found


class StyleEncoder(nn.Module):
    """An image to the mean and log-variance of its latent vector (the paper's appendix)."""

    def __init__(self, dims: int, channels: int, features: Sequence[int], latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((channels, *features)):
            layers += [conv(dims, a, b, 3, 2), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * features[-1], 2 * latent)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``(B, latent)``, float32."""
        features = self.body(image).flatten(2)
        # Mean and spread over the image: style is what the labels do not say, wherever it is.
        spread = (features.var(2, correction=0) + 1e-6).sqrt()
        summary = torch.cat([features.mean(2), spread], dim=1)
        mean, logvar = self.head(summary).float().chunk(2, dim=1)
        return mean, logvar.clamp(-10, 10)


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of a critic's features, averaged over its layers.

    ``real`` is taken as it is: no gradient flows into it.
    """
    distances = [(a - b.detach()).abs().mean() for a, b in zip(fake, real, strict=True)]
    return torch.stack(distances).mean()
