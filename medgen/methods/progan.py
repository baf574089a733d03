"""ProGAN: generator and critic grow together, from a coarse grid to the whole image.

Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation" (ICLR
2018): WGAN-GP with a drift term. The critic minimises

    E[D(G(z))] - E[D(x)] + 10 E[(|grad D(x^)| - 1)^2] + 0.001 E[D(x)^2]

and the generator ``-E[D(G(z))]``, with equalised learning rates, pixel normalisation and the
minibatch deviation. The coarsest level trains for one phase; every further one fades in for one
phase and stays for another. The number of images seen decides, and is saved with the weights.

``generate`` makes images in -1..1 of the full size at any time: a growing network's are enlarged.
The latent's length is normalised away, so nothing can be truncated.
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
from medgen.networks.counter import Counter
from medgen.networks.layers import frozen, one_hot
from medgen.networks.progressive import ProgressiveCritic, ProgressiveGenerator, faded
from medgen.networks.stylegan2 import level_sizes, level_widths


class ProGANConfig(Config):
    """Settings of progressive growing."""

    spatial_dims: Literal[2] = Field(2, description="2: slices and photographs")
    channels: int = Field(1, ge=1, description="image channels")
    image_size: tuple[int, int] = Field(
        (128, 128), description="rows and columns: a grid of 3 to 8 times a power of two"
    )
    conditions: int = Field(0, ge=0, description="number of conditions; 0 for none")
    latent: int = Field(128, ge=1, description="length of the noise vector")
    base: int = Field(
        4096, ge=1, description="both networks have base / edge channels at an image edge ..."
    )
    largest: int = Field(128, ge=1, description="... but not more than this")
    images_per_phase: int = Field(
        60_000,
        ge=0,
        description="images in which a level fades in, and again in which it stays; 0: full size "
        "from the first step",
    )
    penalty_weight: float = Field(10.0, ge=0, description="weight of the gradient penalty")
    drift: float = Field(1e-3, ge=0, description="weight of the critic's squared outputs")
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate of both networks")
    betas: tuple[float, float] = Field((0.0, 0.99), description="Adam's decay rates")


class ProGAN(nn.Module):
    """Makes images of noise and a condition, level by level.

    Raises:
        InputError: The image's size is no small grid times a power of two.
    """

    Config = ProGANConfig
    input_slices = 1
    divisor = 1
    training_only = ("critic",)

    def __init__(self, config: ProGANConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.channels, self.image_size = config.channels, config.image_size
        self.conditions, self.latent_shape = config.conditions, (config.latent,)
        sizes = level_sizes(config.image_size)
        widths = level_widths(sizes, config.base, config.largest)
        self.top = len(sizes) - 1
        self.generator = ProgressiveGenerator(
            config.latent, config.conditions, config.channels, sizes, widths
        )
        self.critic = ProgressiveCritic(config.channels, config.conditions, sizes, widths)
        self.images = Counter()

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each network. What has not grown yet gets no gradient and does not move."""
        config = self.config
        return {
            name: Adam(network.parameters(), lr=config.learning_rate, betas=config.betas)
            for name, network in (("critic", self.critic), ("generator", self.generator))
        }

    def stage(self, images: int) -> tuple[int, float]:
        """The level and its share ``alpha`` after so many training images."""
        if not self.config.images_per_phase:
            return self.top, 1.0
        phase = images / self.config.images_per_phase
        level = min(self.top, int((phase + 1) // 2))
        return level, 1.0 if level == 0 else min(1.0, phase - (2 * level - 1))

    def generate(
        self, latent: Tensor, condition: Tensor | None = None, *, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        """``image`` ``(B, C, *image_size)`` in -1..1.

        Args:
            latent: Standard normal ``(B, latent)``; only its direction counts.
            condition: Numbers ``(B,)`` if there are conditions.
            truncation: Must be 1.

        Raises:
            InputError: Another truncation; a condition is missing, or there are none.
        """
        if truncation != 1:
            msg = f"progan cannot truncate: it normalises its latents, got truncation {truncation}"
            raise InputError(msg, "Use truncation 1.")
        level, alpha = self.stage(int(self.images.count))
        image = self.generator(latent, self._label(condition), level, alpha)
        full = F.interpolate(image, size=self.image_size, mode="nearest")
        return {"image": full.clamp(-1, 1)}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic's loss, then the generator's against the new critic."""
        config, real = self.config, batch["image"]
        label = self._label(batch.get("condition") if self.conditions else None)
        twice = None if label is None else label.repeat(2, 1)
        level, alpha = self.stage(self.images.advance(len(real)))
        to_critic, to_generator = ADVERSARIAL["wasserstein"]

        with torch.no_grad():
            real = F.avg_pool2d(real, 2 ** (self.top - level))
            real = faded(real, alpha)
            fake = self.generator(self._latents(real), label, level, alpha)
        both = self.critic(torch.cat([real, fake]), twice, level, alpha, parts=2)
        real_scores, fake_scores = both.chunk(2)
        penalty = wgan_gp(
            lambda x: self.critic(x, label, level, alpha), real, fake, weight=config.penalty_weight
        )
        drift = config.drift * real_scores.square().mean()
        loss = to_critic(real_scores, fake_scores) + penalty + drift
        parts = critic_parts(real_scores, fake_scores, boundary=None)
        yield "critic", loss, {**parts, "penalty": penalty.detach()}

        with frozen(self.critic):
            fake = self.generator(self._latents(real), label, level, alpha)
            fake_scores = self.critic(fake, label, level, alpha)
        parts = {
            "fake_score": fake_scores.detach().mean(),
            "level": torch.tensor(level + alpha - 1),
        }
        yield "generator", to_generator(fake_scores, real_scores.detach()), parts

    def _latents(self, like: Tensor) -> Tensor:
        """New latents, as many as there are images."""
        return torch.randn(len(like), self.config.latent, device=like.device)

    def _label(self, condition: Tensor | None) -> Tensor | None:
        """Conditions as vectors ``(B, conditions)``."""
        if (condition is None) != (self.conditions == 0):
            given = "none" if condition is None else "one"
            raise InputError(f"{self.conditions} conditions to choose from, but {given} was given")
        return None if condition is None else one_hot(condition, self.conditions)
