"""Gated convolution: free-form holes, filled coarsely and then refined.

Yu et al., "Free-Form Image Inpainting with Gated Convolution" (ICCV 2019). A coarse network fills
the hole, a second one of the same kind refines what the first has made, and SN-PatchGAN judges the
completed image together with the hole:

``L_D = E max(0, 1 - D(x)) + E max(0, 1 + D(y))``
``L_G = |y_coarse - x| + |y - x| - E D(y)``

The weights are the paper's, 1 each. Its refinement network has a second branch with contextual
attention, which is left out here: without it one network serves any size in 2-D and 3-D. The
absolute differences are means over the hole, because outside it nothing of the output is used.

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
from medgen.losses import ADVERSARIAL, critic_parts, mean_inside
from medgen.methods._inpainting import Slices, apart
from medgen.methods._restoring import Restored, require_slices, start_near
from medgen.networks.folding import fold, unfold
from medgen.networks.gated import GatedNetwork, SNPatchCritic
from medgen.networks.layers import frozen
from medgen.networks.sizes import require_multiples

critic_loss, generator_loss = ADVERSARIAL["hinge"]


class GatedConvConfig(Config):
    """Settings of the two gated networks and their critic."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences), without the hole")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    fold: int = Field(
        1, ge=1, description="voxels per axis folded into channels around both networks"
    )
    width: int = Field(48, ge=1, description="channels of both networks at full size")
    critic_features: tuple[int, ...] = Field(
        (64, 128, 256, 256, 256, 256),
        min_length=2,
        description="critic channels after each halving of the size",
    )
    coarse_weight: float = Field(1.0, ge=0, description="weight of the coarse network's L1")
    adversarial_weight: float = Field(1.0, gt=0, description="weight of the critic's verdict")
    spread: bool = Field(True, description="predict the size of the error as well")
    learning_rate: float = Field(1e-4, gt=0, description="Adam learning rate of the networks")
    critic_rate: float = Field(1e-4, gt=0, description="Adam learning rate of the critic")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's moments")


class GatedConv(nn.Module):
    """Fills holes of images; its input channels are those of the image and the hole.

    Raises:
        InputError: If ``input_slices`` is even, or more than one in 3-D.
    """

    Config = GatedConvConfig
    training_only = ("critic",)

    def __init__(self, config: GatedConvConfig) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.input_slices = config.input_slices
        self.channels, self.out_channels = config.channels + 1, config.channels
        self.divisor = 4 * config.fold
        folded = config.fold**dims
        inputs, outputs = self.channels * config.input_slices * folded, config.channels * folded
        spread = outputs if config.spread else 0
        self.coarse = GatedNetwork(dims, inputs, outputs, config.width)
        self.refine = GatedNetwork(dims, inputs, outputs + spread, config.width)
        start_near(self.refine.layers[-1], outputs, gain=1.0)
        self.critic = SNPatchCritic(dims, self.channels, config.critic_features)
        # On CPUs 2-D convolutions run about 1.5 times faster in this layout.
        self.layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def optimizers(self) -> dict[str, Optimizer]:
        """One for the critic, one for both networks."""
        config = self.config
        filling = [*self.coarse.parameters(), *self.refine.parameters()]
        return {
            "critic": Adam(self.critic.parameters(), config.critic_rate, config.betas),
            "network": Adam(filling, config.learning_rate, config.betas),
        }

    def forward(self, image: Tensor) -> tuple[Tensor, Restored]:
        """The coarse and the refined image ``(B, C, *s)`` of ``(B, slices * (C + 1), *s)``.

        Raises:
            InputError: The size is not a multiple of ``divisor``.
        """
        require_multiples(image.shape[2:], self.divisor)
        slices = apart(image, self.config.channels).emptied()
        coarse = slices.filled(self._run(self.coarse, slices)).output
        return coarse, slices.filled(self._run(self.refine, slices.with_middle(coarse)))

    def _run(self, network: nn.Module, slices: Slices) -> Tensor:
        seen = fold(slices.together(), self.config.fold).contiguous(memory_format=self.layout)
        return unfold(network(seen), self.config.fold)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic's loss, then that of both networks against the updated critic."""
        target, mask = batch["target"], batch["mask"]
        coarse, made = self(batch["image"])
        real = torch.cat([target, mask], dim=1)
        fake = torch.cat([made.output, mask], dim=1)
        true, false = self.critic(real), self.critic(fake.detach())
        yield "critic", critic_loss(true, false), critic_parts(true, false)

        with frozen(self.critic):
            adversarial = generator_loss(self.critic(fake), true.detach())
        rough = mean_inside((coarse - target).abs(), mask)
        fine = mean_inside((made.output - target).abs(), mask)
        spread = made.spread_loss(target, mask)
        loss = fine + self.config.coarse_weight * rough + spread
        loss = loss + self.config.adversarial_weight * adversarial
        parts = {"coarse_l1": rough, "l1": fine, "adversarial": adversarial}
        yield "network", loss, {name: part.detach() for name, part in parts.items()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output``: the refined image; ``spread``: the scale of its error, above 0."""
        made: Restored = self(image)[1]
        return made.outputs()
