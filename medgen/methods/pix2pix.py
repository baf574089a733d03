"""Pix2pix: from one kind of image to another, learned from aligned pairs.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (CVPR 2017). The
generator G turns the source x into the target y; a critic D that sees both says of every patch
whether the target is real:

``min_G max_D  E[log D(x, y)] + E[log(1 - D(x, G(x)))] + 100 * E|y - G(x)|``

where G is trained to raise ``log D(x, G(x))`` instead and D's loss is halved, as in the paper. Its
noise is dropout, which only training has here: prediction never samples. ``adversarial_weight`` 0
leaves the critic out; the name ``unet_l1`` stands for that.

Generators: ``pix2pix``, the paper's U-Net; ``resnet``, CycleGAN's; ``unet``, a U-Net with batch
norm (Ronneberger 2015), whose result at a place does not depend on how far the image reaches, as
tiles need it. Unlike the paper's, their last layer is linear: the brightest voxels of a scan lie
beyond 1. Norms of the other two take mean and deviation from the image, as batch norm does in the
paper, which trains with one image per step.

One network can learn several targets: the source then holds, behind the image's channels, one plane
per target that is 1 for the wanted one and else 0 (as StarGAN's domain label; Choi et al. 2018).
With ``heads`` the network does not see these planes: it makes every target at once, and they choose
among its last channels. A U-Net that sees them as input learns to use them late or never: they
would have to turn the sign of every detail.

``output`` has the target's unit; ``spread`` is the scale of a Laplace distribution of its error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import ADVERSARIAL, BOUNDARY, critic_parts, mean_inside
from medgen.methods._restoring import Restored, require_slices, restored
from medgen.networks.folding import fold, unfold
from medgen.networks.layers import frozen
from medgen.networks.sizes import require_multiples
from medgen.networks.translation import PatchGAN, ResNetTranslator, UNetTranslator


class Pix2PixConfig(Config):
    """Settings of the paired translation."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    channels: int = Field(
        1,
        ge=1,
        description="channels of each slice: the image's, and a plane per target if several",
    )
    out_channels: int = Field(1, ge=1, description="channels of the target")
    heads: int = Field(
        0,
        ge=0,
        description="targets that the network makes at once, for the last so many channels of "
        "each slice, the planes, to choose from; 0: it sees the planes, if there are any",
    )
    generator: Literal["pix2pix", "unet", "resnet"] = Field(
        "pix2pix", description="the paper's U-Net, one with batch norm, or CycleGAN's generator"
    )
    features: tuple[int, ...] = Field(
        (32, 64, 128, 256, 256, 256),
        min_length=2,
        description="channels of a U-Net: pix2pix, after each halving; unet, at its five "
        "resolutions",
    )
    fold: int = Field(
        1,
        ge=1,
        description="unet and resnet: voxels per axis folded into channels before the first layer "
        "and unfolded after the last",
    )
    width: int = Field(32, ge=1, description="resnet: channels at full size")
    blocks: int = Field(6, ge=1, description="resnet: residual blocks")
    dropout: float = Field(0.5, ge=0, lt=1, description="pix2pix: of its first three doublings")
    spread: bool = Field(True, description="also predict how far off the result may be")
    loss: Literal["non_saturating", "least_squares"] = Field(
        "non_saturating", description="adversarial loss"
    )
    adversarial_weight: float = Field(1.0, ge=0, description="of that loss; 0: no critic")
    l1_weight: float = Field(100.0, gt=0, description="weight of the mean absolute error")
    critic_width: int = Field(32, ge=1, description="channels of the critic's first layer")
    critic_layers: int = Field(
        3, ge=1, description="halvings in the critic: 3 judge patches of 70 voxels a side, 2 of 34"
    )
    generator_rate: float = Field(2e-4, gt=0, description="Adam learning rate of the generator")
    critic_rate: float = Field(2e-4, gt=0, description="Adam learning rate of the critic")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's moments")


class Pix2Pix(nn.Module):
    """Predicts one kind of image from another.

    Raises:
        InputError: ``input_slices`` is even, or more than one in 3-D; or not as many ``features``
            as the U-Net has resolutions; or ``heads`` that leave no channel for the image.
    """

    Config = Pix2PixConfig
    training_only = ("critic",)

    def __init__(self, config: Pix2PixConfig) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        if config.generator == "unet" and len(config.features) != 5:
            msg = f"generator unet has five resolutions, got {len(config.features)} features"
            raise InputError(msg, "Give five numbers, for example 16, 32, 64, 128, 160.")
        if config.heads >= config.channels:
            msg = f"{config.heads} planes leave no image among {config.channels} channels"
            raise InputError(msg, "Set channels to those of the image and a plane per target.")
        self.config = config
        self.spatial_dims, self.input_slices = config.spatial_dims, config.input_slices
        self.channels, self.out_channels = config.channels, config.out_channels
        self.generator, self.divisor = _generator(config)
        self.critic: PatchGAN | None = None
        if config.adversarial_weight:
            seen = config.channels * config.input_slices + config.out_channels
            self.critic = PatchGAN(
                config.spatial_dims, seen, width=config.critic_width, layers=config.critic_layers
            )

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each network."""
        config = self.config
        found: dict[str, Optimizer] = {}
        if self.critic:
            found["critic"] = Adam(self.critic.parameters(), config.critic_rate, config.betas)
        found["generator"] = Adam(self.generator.parameters(), config.generator_rate, config.betas)
        return found

    def forward(self, image: Tensor) -> Restored:
        """Source ``(B, slices * channels, *s)`` to the target of its middle slice."""
        require_multiples(image.shape[2:], self.divisor)
        heads, channels = self.config.heads, self.config.out_channels
        if not heads:
            return restored(self.generator(image), 0.0, channels)
        slices = image.unflatten(1, (self.input_slices, self.channels))
        made = self.generator(slices[:, :, :-heads].flatten(1, 2)).unflatten(1, (heads, -1))
        wanted = slices[:, self.input_slices // 2, -heads:].unsqueeze(2)
        return restored((made * wanted).sum(1), 0.0, channels)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic on the real and the made target, then the generator against it."""
        config, source, target = self.config, batch["image"], batch["target"]
        critic_loss, generator_loss = ADVERSARIAL[config.loss]
        made = self(source)
        l1 = mean_inside((made.output - target).abs(), batch["mask"])
        loss = config.l1_weight * (l1 + made.spread_loss(target, batch["mask"]))
        parts = {"l1": l1.detach()}
        if self.critic:
            real = self.critic(torch.cat([source, target], dim=1))[0]
            fake = self.critic(torch.cat([source, made.output.detach()], dim=1))[0]
            told = critic_parts(real, fake, boundary=BOUNDARY[config.loss])
            yield "critic", critic_loss(real, fake) / 2, told
            with frozen(self.critic):
                fake = self.critic(torch.cat([source, made.output], dim=1))[0]
            adversarial = generator_loss(fake, real.detach())
            loss = loss + config.adversarial_weight * adversarial
            parts["adversarial"] = adversarial.detach()
        yield "generator", loss, parts

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output`` in the target's unit and, if predicted, its ``spread``."""
        return self(image).outputs()


def _generator(config: Pix2PixConfig) -> tuple[nn.Module, int]:
    """The generator, and what spatial sizes must be multiples of."""
    dims, inputs = config.spatial_dims, (config.channels - config.heads) * config.input_slices
    outputs = config.out_channels * (2 if config.spread else 1) * max(config.heads, 1)
    if config.generator == "pix2pix":
        network = UNetTranslator(
            dims, inputs, outputs, features=config.features, dropout=config.dropout
        )
        return network, network.divisor
    if config.generator == "resnet":
        translator = ResNetTranslator(
            dims, inputs, outputs, width=config.width, blocks=config.blocks, folding=config.fold,
            planes=config.channels > 1 + config.heads,
        )  # fmt: skip
        return translator, translator.divisor
    return _FoldedUNet(dims, inputs, outputs, config.features, config.fold), 16 * config.fold


class _FoldedUNet(nn.Module):
    """MONAI's U-Net on folded images."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, features: tuple[int, ...], folding: int
    ) -> None:
        super().__init__()
        self.folding = folding
        # On CPUs 2-D convolutions with batch norm run about 1.5 times faster in this layout.
        self.layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        folded = folding**dims
        self.network = BasicUNet(
            spatial_dims=dims,
            in_channels=inputs * folded,
            out_channels=outputs * folded,
            features=(*features, features[0]),
            norm="batch",
        )
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        value = fold(image, self.folding).contiguous(memory_format=self.layout)
        return unfold(self.network(value), self.folding)
