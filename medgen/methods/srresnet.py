"""SRResNet and SRGAN: residual blocks at low resolution, with a critic if wanted.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network" (2017). A trunk of residual blocks works at low resolution and sub-pixel convolution
(Shi et al. 2016) makes the large image of its last features. Here the input is the image already
interpolated to the wanted grid, so that any scale, also one that differs between axes, is the same
task; ``fold`` puts blocks of voxels into channels before the first layer and back after the last,
which keeps the trunk at low resolution. The network predicts what interpolation missed (Kim et
al., VDSR, 2016). Batch normalisation is left out by default (Lim et al., EDSR, 2017).

The loss is the mean absolute error (Lim et al. 2017 found it better than squares). The name
``srgan`` stands for this method with SRGAN's loss, ``content + 1e-3 * -log D(G(x))``, whose
content is the difference of the critic's own features: those of a network for photographs would
have to be downloaded, and scans are no photographs.

``output`` has the image's unit. ``spread`` is the scale of a Laplace distribution of its errors.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medgen.config import Config
from medgen.methods._perceptual import Sharpens
from medgen.networks.super_resolution import ResidualBlock


class SRResNetConfig(Config):
    """Settings of the residual network for super-resolution."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    channels: int = Field(1, ge=1, description="image channels")
    fold: int = Field(
        2, ge=1, description="voxels per axis folded into channels: the trunk's lower resolution"
    )
    blocks: int = Field(8, ge=1, description="residual blocks; the paper has 16")
    width: int = Field(48, ge=1, description="channels of the trunk; the paper has 64")
    norm: Literal["none", "batch"] = Field(
        "none", description="normalisation in the blocks: none as EDSR, batch as SRResNet"
    )
    spread: bool = Field(True, description="also predict how far the result may be off")
    pixel_weight: float = Field(1.0, ge=0, description="weight of the mean absolute error")
    feature_weight: float = Field(
        0.0, ge=0, description="weight of the difference of the critic's features"
    )
    adversarial_weight: float = Field(
        0.0, ge=0, description="weight of the adversarial loss; 0: there is no critic"
    )
    critic_width: int = Field(24, ge=1, description="channels of the critic's first layers")
    critic_stages: int = Field(3, ge=1, description="how often the critic halves the image")
    learning_rate: float = Field(5e-4, gt=0, description="Adam's learning rate of the network")
    critic_rate: float = Field(1e-4, gt=0, description="Adam's learning rate of the critic")


class SRResNet(Sharpens):
    """Predicts the sharp image from an interpolated one.

    Raises:
        InputError: ``input_slices`` has no middle, or weights of losses contradict each other.
    """

    Config = SRResNetConfig

    def __init__(self, config: SRResNetConfig) -> None:
        blocks = [
            ResidualBlock(config.spatial_dims, config.width, batch_norm=config.norm == "batch")
            for _ in range(config.blocks)
        ]
        super().__init__(config, blocks, "non_saturating")
