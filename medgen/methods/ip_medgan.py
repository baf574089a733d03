"""ip-MedGAN: a U-Net whose fillings must look real as a whole and close up.

Armanious et al., "Adversarial Inpainting of Medical Image Modalities" (ICASSP 2019). Two patch
critics judge the completed image: one all of it, one a region around the hole. Both have the cross
entropy of Goodfellow et al. (2014), and the generator minimises

``L = L_global + L_local + 100 |y - x| + a perceptual(y, x) + b style(y, x)``

The absolute difference is a mean over the whole image. The perceptual loss is the distance of
features, the style loss that of their Gram matrices (Gatys et al. 2016). The paper takes the style
from a network trained on photographs, whose weights would have to be downloaded; here both come
from the features of the two critics (as the perceptual loss of MedGAN does: Armanious et al. 2020)
and are relative to their size, so the weights ``a`` and ``b`` are not the paper's. Its generator is
a cascade of U-Nets; here it is the one of ``inpaint_unet``, which corrects a given filling, so that
these two methods differ in their losses alone. Holes may have any shape: the local critic sees a
box around a random voxel of the hole.

``output`` has the image's unit, and outside the hole its values; ``spread`` is the predicted scale
of a Laplace distribution of the error in the hole. With ``input_slices`` > 1 (2-D only)
neighbouring slices with their holes enter as channels, and the middle one is filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import (
    ADVERSARIAL,
    critic_parts,
    feature_distance,
    style_distance,
)
from medgen.methods._inpainting import FillingUNet, apart
from medgen.methods._restoring import Restored, require_slices
from medgen.networks.layers import frozen
from medgen.networks.spade import PatchCritic

critic_loss, generator_loss = ADVERSARIAL["non_saturating"]


class IPMedGANConfig(Config):
    """Settings of the generator and its two critics."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences), without the hole")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    fold: int = Field(
        1, ge=1, description="voxels per axis folded into channels around the generator"
    )
    features: tuple[int, int, int, int, int] = Field(
        (16, 32, 64, 128, 160), description="channels at the five resolutions of the U-Net"
    )
    critic_features: tuple[int, ...] = Field(
        (64, 128, 256),
        min_length=1,
        description="channels of both critics after each halving of the size",
    )
    local_size: int = Field(
        32, ge=2, description="voxels along each axis of what the local critic sees"
    )
    l1_weight: float = Field(100.0, gt=0, description="weight of the absolute difference")
    adversarial_weight: float = Field(1.0, gt=0, description="weight of each critic's verdict")
    perceptual_weight: float = Field(1.0, ge=0, description="weight of the features' distance")
    style_weight: float = Field(10.0, ge=0, description="weight of the Gram matrices' distance")
    spread: bool = Field(True, description="predict the size of the error as well")
    learning_rate: float = Field(2e-4, gt=0, description="Adam learning rate of the generator")
    critic_rate: float = Field(2e-4, gt=0, description="Adam learning rate of the critics")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's moments")


class IPMedGAN(nn.Module):
    """Corrects fillings of holes; its input channels are those of the image and the hole.

    Raises:
        InputError: Unusable ``input_slices``, or a ``local_size`` that the critic cannot halve.
    """

    Config = IPMedGANConfig
    training_only = ("global_critic", "local_critic")

    def __init__(self, config: IPMedGANConfig) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        needed = 2 ** len(config.critic_features)
        if config.local_size < needed:
            raise InputError(
                f"the local critic halves boxes of {needed} or more, got {config.local_size}",
                f"Set local_size to {needed} or more, or give fewer critic_features.",
            )
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.input_slices = config.input_slices
        self.channels, self.out_channels = config.channels + 1, config.channels
        self.generator = FillingUNet(
            dims, config.channels, config.input_slices, config.features, config.fold,
            spread=config.spread,
        )  # fmt: skip
        self.divisor = self.generator.divisor
        self.global_critic = PatchCritic(dims, config.channels, config.critic_features)
        self.local_critic = PatchCritic(dims, config.channels, config.critic_features)
        for critic in (self.global_critic, self.local_critic):
            critic.to(memory_format=self.generator.layout)  # type: ignore[call-overload]

    def optimizers(self) -> dict[str, Optimizer]:
        """One for both critics, one for the generator."""
        config = self.config
        critics = [*self.global_critic.parameters(), *self.local_critic.parameters()]
        return {
            "critic": Adam(critics, config.critic_rate, config.betas),
            "generator": Adam(self.generator.parameters(), config.learning_rate, config.betas),
        }

    def forward(self, image: Tensor) -> Restored:
        """Images and holes ``(B, slices * (C + 1), *s)`` to the filled middle one ``(B, C, *s)``.

        Raises:
            InputError: The size is not a multiple of ``divisor``.
        """
        return self.generator.fill(apart(image, self.config.channels))

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critics' losses together, then the generator's against the updated critics."""
        config, target, mask = self.config, batch["target"], batch["mask"]
        made = self(batch["image"])
        corners = box_corners(mask, config.local_size)
        near_real = boxes(target, corners, config.local_size)
        near_fake = boxes(made.output, corners, config.local_size)
        whole = [self.global_critic(each)[0] for each in (target, made.output.detach())]
        close = [self.local_critic(each)[0] for each in (near_real, near_fake.detach())]
        parts = critic_parts(*whole)
        parts |= {f"local_{name}": value for name, value in critic_parts(*close).items()}
        yield "critic", critic_loss(*whole) + critic_loss(*close), parts

        with frozen(self.global_critic), frozen(self.local_critic):
            verdict, features = self.global_critic(made.output)
            near_verdict, near_features = self.local_critic(near_fake)
        with torch.no_grad():
            of_real, wanted = self.global_critic(target)
            _, near_wanted = self.local_critic(near_real)
        l1 = (made.output - target).abs().mean()
        adversarial = generator_loss(verdict, of_real) + generator_loss(near_verdict, of_real)
        pair = [*features, *near_features], [*wanted, *near_wanted]
        perceptual, style = feature_distance(*pair), style_distance(*pair)
        loss = config.l1_weight * l1 + made.spread_loss(target, mask)
        loss = loss + config.adversarial_weight * adversarial
        loss = loss + config.perceptual_weight * perceptual + config.style_weight * style
        parts = {
            "l1": l1.detach(),
            "adversarial": adversarial.detach(),
            "perceptual": perceptual.detach(),
            "style": style.detach(),
        }
        yield "generator", loss, parts

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output``: the filled image; ``spread``: the scale of its error, above 0."""
        made: Restored = self(image)
        return made.outputs()


def box_corners(mask: Tensor, size: int) -> Tensor:
    """First voxels ``(B, dims)`` of boxes around a random voxel of each mask ``(B, 1, *spatial)``.

    A box reaches over no edge; an axis shorter than ``size`` starts at 0.
    """
    spatial = mask.shape[2:]
    chance = torch.rand(mask.shape, device=mask.device) * (mask > 0)
    place = chance.flatten(1).argmax(1)
    corners = []
    for axis in reversed(range(len(spatial))):
        here = place % spatial[axis] - size // 2
        corners.append(here.clamp(0, max(0, spatial[axis] - size)))
        place = place // spatial[axis]
    return torch.stack(corners[::-1], dim=1)


def boxes(image: Tensor, corners: Tensor, size: int) -> Tensor:
    """Boxes ``(B, C, *(size,) * dims)`` of images that start at the corners ``(B, dims)``."""
    cut = [
        each[(slice(None), *(slice(first, first + size) for first in corner))]
        for each, corner in zip(image, corners.tolist(), strict=True)
    ]
    return torch.stack(cut)
