"""How different two images are to a network that has learnt to tell images apart.

Shvetsova et al., "Anomaly Detection in Medical Imaging with Deep Perceptual Autoencoders" (IEEE
Access 9, 2021): the relative distance of features, ``|f(x) - f(x')| / |f(x)|``, here at the first
stages of a network trained without labels (``selfsup``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.losses import feature_distance
from medgen.networks.features import FrozenFeatures

STAGES = (1, 2, 3)  # at 1/2, 1/4 and 1/8 of the size; the last sees too much at once
WIDTHS = (32, 64, 128, 160)  # of medgen-features


class Perception(FrozenFeatures):
    """A frozen feature network that compares images in 0..1."""

    def __init__(self) -> None:
        super().__init__(WIDTHS, STAGES)

    def distance(self, made: Tensor, real: Tensor) -> Tensor:
        """Mean relative distance of two batches ``(B, C, *spatial)``, from 0."""
        with torch.no_grad():
            wanted = self(real)
        return feature_distance(self(made), wanted)

    def distance_map(self, made: Tensor, real: Tensor) -> Tensor:
        """The same at every place, ``(B, 1, *spatial)``; 1: as large as features usually are."""
        size = real.shape[2:]
        maps = []
        for a, b in zip(self(made), self(real), strict=True):
            usual = b.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
            distance = (a - b).abs().mean(1, keepdim=True) / usual
            maps.append(F.interpolate(distance, size[:2], mode="bilinear"))
        mean = torch.stack(maps).mean(0)
        # Channels and slices that were seen by themselves belong to one image.
        mean = mean.unflatten(0, (len(real), *size[2:], -1)).mean(-4)
        return mean.movedim(1, -1) if len(size) == 3 else mean
