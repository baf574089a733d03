"""Context encoder: the first network to fill holes, by squared error and a critic.

Pathak et al., "Context Encoders: Feature Learning by Inpainting" (CVPR 2016). An encoder of strided
convolutions, a layer that passes information from everywhere to everywhere, and a decoder of
transposed convolutions, without any skip:

``L = 0.999 |m (y - x)|^2 + 0.001 L_adv``,  ``L_adv = max_D E log D(x) + E log(1 - D(y))``

x is the true image, m its hole, y the image with the hole filled; the network raises ``log D(y)``
instead of lowering ``log(1 - D(y))``. As in the paper the critic is not told where the hole was.

The paper's channel-wise fully-connected layer needs one fixed image size. Here it is a convolution
of each channel for itself, so wide that it reaches ``reach`` places of the coarsest grid in every
direction, and its weights depend on the offset of two places alone. So any size will do. The critic
gives each image the mean of its verdicts about patches, for the same reason.

``output`` has the image's unit, and outside the hole its values; ``spread`` is the predicted scale
of a Laplace distribution of the error in the hole. With ``input_slices`` > 1 (2-D only)
neighbouring slices with their holes enter as channels, and the middle one is filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.losses import ADVERSARIAL, critic_parts, mean_inside
from medgen.methods._inpainting import apart
from medgen.methods._restoring import Restored, require_slices, start_near
from medgen.networks.folding import fold, unfold
from medgen.networks.layers import BATCH_NORM, CONV, CONV_TRANSPOSE, conv, frozen
from medgen.networks.sizes import require_multiples
from medgen.networks.spade import PatchCritic

critic_loss, generator_loss = ADVERSARIAL["non_saturating"]


class ContextEncoderConfig(Config):
    """Settings of encoder, decoder and critic."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences), without the hole")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    fold: int = Field(
        1, ge=1, description="voxels per axis folded into channels around the network"
    )
    features: tuple[int, ...] = Field(
        (64, 64, 128, 256, 512),
        min_length=2,
        description="encoder channels after each halving of the size; the decoder mirrors them",
    )
    bottleneck: int = Field(512, ge=1, description="channels of the layer that reaches everywhere")
    reach: int = Field(4, ge=1, description="how many places of the coarsest grid it reaches")
    critic_features: tuple[int, ...] = Field(
        (64, 128, 256, 512),
        min_length=1,
        description="critic channels after each halving of the size",
    )
    squared_weight: float = Field(0.999, gt=0, description="weight of the squared error")
    adversarial_weight: float = Field(0.001, gt=0, description="weight of the critic's verdict")
    spread: bool = Field(True, description="predict the size of the error as well")
    learning_rate: float = Field(2e-4, gt=0, description="Adam learning rate of the network")
    critic_rate: float = Field(2e-5, gt=0, description="Adam learning rate of the critic")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's moments")


class ContextEncoder(nn.Module):
    """Fills holes of images; its input channels are those of the image and the hole.

    Raises:
        InputError: If ``input_slices`` is even, or more than one in 3-D.
    """

    Config = ContextEncoderConfig
    training_only = ("critic",)

    def __init__(self, config: ContextEncoderConfig) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.input_slices = config.input_slices
        self.channels, self.out_channels = config.channels + 1, config.channels
        self.divisor = 2 ** len(config.features) * config.fold
        folded = config.fold**dims
        outputs = config.channels * folded
        spread = outputs if config.spread else 0
        self.network = _network(
            config, self.channels * config.input_slices * folded, outputs + spread
        )
        start_near(self.network[-1], outputs, gain=1.0)
        self.critic = PatchCritic(dims, config.channels, config.critic_features)
        # On CPUs 2-D convolutions run about 1.5 times faster in this layout.
        self.layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each network; the paper's critic learns ten times more slowly."""
        config = self.config
        return {
            "critic": Adam(self.critic.parameters(), config.critic_rate, config.betas),
            "network": Adam(self.network.parameters(), config.learning_rate, config.betas),
        }

    def forward(self, image: Tensor) -> Restored:
        """Images and holes ``(B, slices * (C + 1), *s)`` to the filled middle one ``(B, C, *s)``.

        Raises:
            InputError: The size is not a multiple of ``divisor``.
        """
        require_multiples(image.shape[2:], self.divisor)
        slices = apart(image, self.config.channels).emptied()
        seen = fold(slices.together(), self.config.fold).contiguous(memory_format=self.layout)
        return slices.filled(unfold(self.network(seen), self.config.fold))

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic's loss, then the network's against the updated critic."""
        target, mask = batch["target"], batch["mask"]
        made = self(batch["image"])
        true, false = self._judge(target), self._judge(made.output.detach())
        yield "critic", critic_loss(true, false), critic_parts(true, false)

        with frozen(self.critic):
            adversarial = generator_loss(self._judge(made.output), true.detach())
        squared = mean_inside((made.output - target).square(), mask)
        loss = self.config.squared_weight * squared + made.spread_loss(target, mask)
        loss = loss + self.config.adversarial_weight * adversarial
        parts = {"squared": squared.detach(), "adversarial": adversarial.detach()}
        yield "network", loss, parts

    def _judge(self, image: Tensor) -> Tensor:
        """One verdict for each image ``(B,)``."""
        verdicts: Tensor = self.critic(image)[0]
        return verdicts.flatten(1).mean(1)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output``: the filled image; ``spread``: the scale of its error, above 0."""
        made: Restored = self(image)
        return made.outputs()


def _network(config: ContextEncoderConfig, inputs: int, outputs: int) -> nn.Sequential:
    """Encoder, the layer that reaches everywhere, and decoder."""
    dims, features, wide = config.spatial_dims, config.features, config.bottleneck
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise((inputs, *features))):
        norm = BATCH_NORM[dims](b) if number else nn.Identity()
        layers += [conv(dims, a, b, 4, 2, bias=not number), norm, nn.LeakyReLU(0.2)]
    layers += [
        CONV[dims](features[-1], features[-1], 2 * config.reach + 1, padding=config.reach,
                   groups=features[-1]),
        conv(dims, features[-1], wide, 1, bias=False),
        BATCH_NORM[dims](wide),
        nn.ReLU(),
    ]  # fmt: skip
    for a, b in pairwise((wide, *reversed(features[:-1]))):
        up = CONV_TRANSPOSE[dims](a, b, 4, 2, 1, bias=False)
        layers += [up, BATCH_NORM[dims](b), nn.ReLU()]
    return nn.Sequential(*layers, CONV_TRANSPOSE[dims](features[0], outputs, 4, 2, 1))
