"""Points in the plane, drawn from Gaussians on a ring: where one can see what a GAN does.

A mixture of eight narrow Gaussians is the usual test for mode collapse (Metz et al., "Unrolled
Generative Adversarial Networks", 2017): every mode is easy to hit, and easy to forget. A point is
an image of size 1 x 1 with two channels, its coordinates.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medgen.config import Config
from medgen.errors import InputError

# A mode is covered if at least this part of a fair share of the points lies in it.
FAIR = 0.1
NEAR = 3.0  # standard deviations


class MixtureConfig(Config):
    """A ring of Gaussians."""

    seed: int = 0
    batch_size: int = Field(256, ge=1, description="points per batch")
    spatial_dims: Literal[2] = Field(2, description="a point is an image of 1 x 1")
    input_slices: Literal[1] = 1
    channels: Literal[2] = Field(2, description="a point's coordinates")
    size: tuple[int, ...] = Field((1, 1), description="of the image that a point is")
    modes: int = Field(8, ge=1, description="number of Gaussians")
    radius: float = Field(0.7, gt=0, lt=1, description="of the ring; the plane is -1..1")
    deviation: float = Field(0.02, gt=0, description="standard deviation of every Gaussian")


class Coverage(NamedTuple):
    """How well points cover a mixture.

    Attributes:
        modes: Modes that hold at least a tenth of a fair share of the points.
        near: Share of the points that lie within three deviations of a mode, 0..1; a perfect
            generator has 0.989.
    """

    modes: int
    near: float


class MixtureSource:
    """Batches of points.

    Raises:
        InputError: A size other than 1 x 1.
    """

    Config = MixtureConfig
    condition_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    def __init__(self, config: MixtureConfig) -> None:
        if config.size != (1, 1):
            raise InputError(
                f"a mixture has images of size (1, 1), got {config.size}",
                "Train an mlp with channels: 2 and image_size: [1, 1].",
            )
        self.config = config
        angle = 2 * math.pi * torch.arange(config.modes) / config.modes
        self.centres = config.radius * torch.stack([torch.cos(angle), torch.sin(angle)], 1)

    def batch(self, index: int) -> dict[str, Tensor]:
        """``image`` ``(B, 2, 1, 1)``, batch number ``index``."""
        return {"image": self.points(self.config.batch_size, 2 * index)[:, :, None, None]}

    def validation_batch(self, index: int) -> dict[str, Tensor]:
        """Points that are in no training batch."""
        return {"image": self.points(self.config.batch_size, 2 * index + 1)[:, :, None, None]}

    def points(self, count: int, draw: int) -> Tensor:
        """``(count, 2)``; the same ones for the same ``draw``."""
        seed = np.random.SeedSequence((self.config.seed, draw)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(seed))
        mode = torch.randint(self.config.modes, (count,), generator=generator)
        noise = torch.randn((count, 2), generator=generator)
        return self.centres[mode] + self.config.deviation * noise

    def coverage(self, points: Tensor) -> Coverage:
        """Which modes points ``(N, 2)`` or ``(N, 2, 1, 1)`` lie in."""
        distance, nearest = torch.cdist(points.flatten(1).cpu(), self.centres).min(1)
        near = distance < NEAR * self.config.deviation
        counts = torch.bincount(nearest[near], minlength=self.config.modes)
        enough = counts >= FAIR * len(points) / self.config.modes
        return Coverage(int(enough.sum()), float(near.float().mean()))
