"""StarGAN: one generator between several domains, without pairs.

Choi et al., "StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image
Translation" (CVPR 2018). The generator sees the image and, as one plane per domain, which domain is
wanted. The critic judges patches and tells the domain c of the image. With a wanted domain w

``L_D = E D(G(x, w)) - E D(x) + 10 * penalty - log p(c | x)``
``L_G = -E D(G(x, w)) - log p(w | G(x, w)) + 10 * |x - G(G(x, w), c)|``

where the penalty is WGAN-GP's (Gulrajani et al. 2017). The critic learns from each part of a batch
in turn (``critic_steps`` 5), the generator from the last one. ``image`` of a batch holds the image
alone or with planes behind it, which are not read: ``domain`` and ``wanted`` ``(B,)`` are.

For prediction the source holds, behind the image's channels, the planes of the wanted domain.
``output`` is in 0..1, as the training images. Structures may be invented.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import ADVERSARIAL, critic_parts, wgan_gp
from medgen.methods._cycle import signed, unsigned
from medgen.networks.layers import frozen, one_hot
from medgen.networks.sizes import require_multiples
from medgen.networks.translation import PatchGAN, ResNetTranslator

critic_loss, generator_loss = ADVERSARIAL["wasserstein"]


class StarGANConfig(Config):
    """Settings of the translation between several domains."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(3, ge=3, description="image channels and a plane for each domain")
    domains: int = Field(2, ge=2, description="number of domains")
    width: int = Field(32, ge=1, description="generator: channels at full size")
    blocks: int = Field(6, ge=1, description="generator: residual blocks")
    fold: int = Field(
        1,
        ge=1,
        description="voxels per axis folded into channels before the generator's first layer and "
        "unfolded after its last",
    )
    critic_width: int = Field(32, ge=1, description="channels of the critic's first layer")
    critic_layers: int = Field(4, ge=1, description="halvings in the critic (6 in the paper)")
    critic_steps: int = Field(
        5, ge=1, description="critic steps for each of the generator; divides the batch"
    )
    penalty_weight: float = Field(10.0, ge=0, description="of the critic's gradient penalty")
    domain_weight: float = Field(1.0, gt=0, description="of the classification of domains")
    cycle_weight: float = Field(10.0, gt=0, description="of the way there and back")
    generator_rate: float = Field(1e-4, gt=0, description="Adam learning rate of the generator")
    critic_rate: float = Field(1e-4, gt=0, description="Adam learning rate of the critic")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's moments")


class StarGAN(nn.Module):
    """Translates an image into any of several domains.

    Raises:
        InputError: ``channels`` leaves none for the image.
    """

    Config = StarGANConfig
    input_slices = 1
    training_only = ("critic",)

    def __init__(self, config: StarGANConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims, self.channels = config.spatial_dims, config.channels
        self.out_channels = config.channels - config.domains
        if self.out_channels < 1:
            raise InputError(
                f"channels must be those of the image and {config.domains} planes, "
                f"got {config.channels}",
                f"For grey images set channels to {config.domains + 1}.",
            )
        self.generator = ResNetTranslator(
            config.spatial_dims, config.channels, self.out_channels,
            width=config.width, blocks=config.blocks, folding=config.fold, planes=True,
        )  # fmt: skip
        self.divisor = self.generator.divisor
        # No norms, as in the paper: the penalty asks for the slope at each image alone.
        self.critic = PatchGAN(
            config.spatial_dims, self.out_channels, width=config.critic_width,
            layers=config.critic_layers, normal=False, offset=False, classes=config.domains,
        )  # fmt: skip

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each network."""
        config = self.config
        return {
            "critic": Adam(self.critic.parameters(), config.critic_rate, config.betas),
            "generator": Adam(self.generator.parameters(), config.generator_rate, config.betas),
        }

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic on each part of the batch, then the generator on the last one."""
        config, steps = self.config, self.config.critic_steps
        if len(batch["image"]) % steps:
            msg = f"batch_size must be a multiple of critic_steps, {steps}"
            raise InputError(f"{msg}; got {len(batch['image'])}")
        images = signed(batch["image"][:, : self.out_channels]).chunk(steps)
        domains, wanted = batch["domain"].chunk(steps), batch["wanted"].chunk(steps)
        for real, domain, other in zip(images, domains, wanted, strict=True):
            with torch.no_grad():
                fake = self.translate(real, other)
            true, classes = self.judge(real)
            false, _ = self.judge(fake)
            penalty = wgan_gp(self._realism, real, fake, weight=config.penalty_weight)
            named = F.cross_entropy(classes, domain)
            loss = critic_loss(true, false) + penalty + config.domain_weight * named
            parts = critic_parts(true, false, boundary=None)
            parts |= {"penalty": penalty.detach(), "domain": named.detach()}
            yield "critic", loss, parts

        real, domain, other = images[-1], domains[-1], wanted[-1]
        fake = self.translate(real, other)
        with frozen(self.critic):
            false, classes = self.judge(fake)
        adversarial, named = generator_loss(false, false), F.cross_entropy(classes, other)
        cycle = F.l1_loss(self.translate(fake, domain), real)
        loss = adversarial + config.domain_weight * named + config.cycle_weight * cycle
        parts = {"adversarial": adversarial, "domain": named, "cycle": cycle}
        yield "generator", loss, {name: part.detach() for name, part in parts.items()}

    def translate(self, image: Tensor, wanted: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` in -1..1 as ones of the domains ``(B,)``."""
        planes = one_hot(wanted, self.config.domains)[(..., *(None,) * self.spatial_dims)]
        planes = planes.to(image.dtype).expand(-1, -1, *image.shape[2:])
        return torch.tanh(self.generator(torch.cat([image, planes], dim=1)))

    def judge(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """How real each image looks ``(B,)``, and the logits of its domain ``(B, domains)``."""
        patches, features = self.critic(image)
        assert self.critic.classify is not None
        classes = self.critic.classify(features[-1].flatten(2).mean(2).float())
        return patches.flatten(1).mean(1), classes

    def _realism(self, image: Tensor) -> Tensor:
        return self.judge(image)[0]

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output`` in 0..1 of image and planes ``(B, channels, *spatial)``."""
        require_multiples(image.shape[2:], self.divisor)
        picture, planes = image.tensor_split([self.out_channels], dim=1)
        raw = self.generator(torch.cat([signed(picture), planes], dim=1))
        return {"output": unsigned(torch.tanh(raw))}
