"""ESRGAN: residual-in-residual dense blocks, and a critic that compares instead of judging.

Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (2018). Blocks
without batch normalisation, each of three dense blocks (RRDB), replace SRResNet's; the critic says
how much more real an image looks than the others do on average (relativistic average;
Jolicoeur-Martineau 2019); the loss is ``features + 5e-3 * adversarial + 1e-2 * L1``. Features are
the critic's own, because those of a network for photographs would have to be downloaded.

The paper trains for L1 alone first: the name ``rrdb`` stands for that, and ``start_from`` of a
training run goes on from its weights. Between the two lie the weights ``(1 - a) * rrdb +
a * esrgan`` (network interpolation, section 3.4), from faithful to sharp: ``medgen models blend``.

As in ``srresnet`` the input is the image already interpolated, ``fold`` keeps the trunk at low
resolution, and the network predicts what interpolation missed. ``output`` has the image's unit;
``spread`` is the scale of a Laplace distribution of its errors.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medgen.config import Config
from medgen.methods._perceptual import Sharpens
from medgen.networks.super_resolution import RRDB


class ESRGANConfig(Config):
    """Settings of the dense residual network for super-resolution."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    channels: int = Field(1, ge=1, description="image channels")
    fold: int = Field(
        2, ge=1, description="voxels per axis folded into channels: the trunk's lower resolution"
    )
    blocks: int = Field(3, ge=1, description="residual-in-residual blocks; the paper has 23")
    width: int = Field(24, ge=1, description="channels of the trunk; the paper has 64")
    growth: int = Field(12, ge=1, description="channels of each dense layer; the paper has 32")
    spread: bool = Field(True, description="also predict how far the result may be off")
    pixel_weight: float = Field(1e-2, ge=0, description="weight of the mean absolute error")
    feature_weight: float = Field(
        1.0, ge=0, description="weight of the difference of the critic's features"
    )
    adversarial_weight: float = Field(
        5e-3, ge=0, description="weight of the adversarial loss; 0: there is no critic"
    )
    critic_width: int = Field(24, ge=1, description="channels of the critic's first layers")
    critic_stages: int = Field(3, ge=1, description="how often the critic halves the image")
    learning_rate: float = Field(2e-4, gt=0, description="Adam's learning rate of the network")
    critic_rate: float = Field(1e-4, gt=0, description="Adam's learning rate of the critic")


class ESRGAN(Sharpens):
    """Predicts the sharp image from an interpolated one.

    Raises:
        InputError: ``input_slices`` has no middle, or weights of losses contradict each other.
    """

    Config = ESRGANConfig

    def __init__(self, config: ESRGANConfig) -> None:
        blocks = [
            RRDB(config.spatial_dims, config.width, config.growth) for _ in range(config.blocks)
        ]
        super().__init__(config, blocks, "relativistic_average", offset=False)
