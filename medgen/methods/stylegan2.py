"""StyleGAN2: a mapping network makes styles of noise, and the styles steer every layer.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), with the
condition and the adaptive augmentation of "Training Generative Adversarial Networks with Limited
Data" (NeurIPS 2020), or DiffAugment (Zhao et al., NeurIPS 2020). The critic minimises

    softplus(D(G(z))) + softplus(-D(x)) + gamma / 2 * |grad D(x)|^2

the generator ``softplus(-D(G(z)))`` plus the path length penalty ``(|J_w^T y| - a)^2`` with images
of noise y and the running mean a of these lengths. Both penalties are lazy: taken every few steps,
in float32, and multiplied by that interval. Here they join the loss of their step, and D's gradient
is that at the augmented image; the paper's code steps the optimiser once more instead, and takes
the gradient through the augmentation.

PathologyGAN (Quiros et al. 2019 and 2021) is this method with the relativistic average loss and
spectral norms in the critic in place of the penalties; of its differences, BigGAN's generator and
the orthogonal regularisation are not kept.

``generate`` makes images in -1..1. Truncation pulls w towards the mean of its condition: 1 changes
nothing, 0 gives the condition's mean image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.augmentation import ADAPTIVE, DIFFERENTIABLE, AdaptiveAugment, DiffAugment
from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import ADVERSARIAL, BOUNDARY, critic_parts, minmax_value, r1, separation
from medgen.networks.counter import Counter
from medgen.networks.layers import frozen, one_hot
from medgen.networks.stylegan2 import Mapping, ResidualCritic, Synthesis

# The path length penalty is taken on this part of a batch, as in the paper.
PATH_SHARE = 2
PATH_DECAY = 0.99


class StyleGAN2Config(Config):
    """Settings of StyleGAN2."""

    spatial_dims: Literal[2] = Field(2, description="2: slices and photographs")
    channels: int = Field(1, ge=1, description="image channels")
    image_size: tuple[int, int] = Field(
        (128, 128), description="rows and columns: a grid of 3 to 8 times a power of two"
    )
    conditions: int = Field(0, ge=0, description="number of conditions; 0 for none")
    latent: int = Field(128, ge=1, description="length of the noise vector z")
    style: int = Field(128, ge=1, description="length of the style vector w")
    mapping_layers: int = Field(4, ge=1, description="layers from z to w")
    mapping_rate: float = Field(
        0.01, gt=0, description="factor on the learning rate of the mapping network"
    )
    generator_base: int = Field(
        5120, ge=1, description="the generator has base / edge channels at an image edge ..."
    )
    generator_max: int = Field(112, ge=1, description="... but not more than this")
    critic_base: int = Field(4096, ge=1, description="as generator_base, for the critic")
    critic_max: int = Field(192, ge=1, description="as generator_max, for the critic")
    loss: Literal["non_saturating", "hinge", "relativistic_average"] = Field(
        "non_saturating", description="adversarial loss"
    )
    spectral_norm: bool = Field(
        False, description="keep the critic's weights at norm 1 instead of equalising rates"
    )
    r1_gamma: float = Field(0.5, ge=0, description="weight of the critic's R1 penalty; 0: none")
    r1_interval: int = Field(16, ge=1, description="steps between R1 penalties")
    path_length_weight: float = Field(
        2.0, ge=0, description="weight of the generator's path length penalty; 0: none"
    )
    path_length_interval: int = Field(4, ge=1, description="steps between path length penalties")
    style_mixing: float = Field(
        0.9, ge=0, le=1, description="chance that a training image mixes two styles"
    )
    w_mean_decay: float = Field(
        0.998, ge=0, lt=1, description="decay of the running mean of w, the centre of truncation"
    )
    augmentation: Literal["none", "diffaugment", "adaptive"] = Field(
        "adaptive", description="augmentation of all that the critic sees"
    )
    operations: tuple[str, ...] = Field(
        (), description="operations of the augmentation to use; empty: all it has"
    )
    adaptive_target: float = Field(
        0.6, ge=0, le=1, description="mean sign of real logits that adaptive augmentation holds"
    )
    adaptive_images: int = Field(
        500_000, ge=1, description="images in which its probability can rise from 0 to 1"
    )
    learning_rate: float = Field(2e-3, gt=0, description="Adam learning rate of the generator")
    critic_rate: float = Field(2e-3, gt=0, description="Adam learning rate of the critic")
    betas: tuple[float, float] = Field((0.0, 0.99), description="Adam's decay rates")


class StyleGAN2(nn.Module):
    """Makes images of noise and a condition.

    Attributes:
        w_mean: Running mean of w for each condition ``(conditions or 1, style)``.

    Raises:
        InputError: The image's size is no small grid times a power of two, or an operation of the
            augmentation is unknown.
    """

    Config = StyleGAN2Config
    input_slices = 1
    divisor = 1
    training_only = ("critic", "augment")
    w_mean: Tensor
    w_count: Tensor
    path_mean: Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.channels, self.image_size = config.channels, config.image_size
        self.conditions, self.latent_shape = config.conditions, (config.latent,)
        self.mapping = Mapping(
            config.latent,
            config.conditions,
            config.style,
            config.mapping_layers,
            rate=config.mapping_rate,
        )
        self.synthesis = Synthesis(
            config.channels,
            config.image_size,
            config.style,
            config.generator_base,
            config.generator_max,
        )
        self.critic = ResidualCritic(
            config.channels,
            config.image_size,
            config.conditions,
            base=config.critic_base,
            largest=config.critic_max,
            spectral_norm=config.spectral_norm,
        )
        self.augment = _augmentation(config)
        self.steps = Counter()
        groups = max(1, config.conditions)
        self.register_buffer("w_mean", torch.zeros(groups, config.style))
        self.register_buffer("w_count", torch.zeros(groups))
        self.register_buffer("path_mean", torch.zeros(()))

    def optimizers(self) -> dict[str, Optimizer]:
        """One for the critic, one for mapping and synthesis."""
        config = self.config
        generator = [*self.mapping.parameters(), *self.synthesis.parameters()]
        return {
            "critic": Adam(self.critic.parameters(), lr=config.critic_rate, betas=config.betas),
            "generator": Adam(generator, lr=config.learning_rate, betas=config.betas),
        }

    def map(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Style vectors ``(B, style)`` of latents ``(B, latent)`` and conditions ``(B,)``."""
        self._check(condition)
        w: Tensor = self.mapping(latent, condition)
        return w

    def synthesize(self, w: Tensor) -> Tensor:
        """Images ``(B, C, *image_size)`` in -1..1 of style vectors, with the fixed noise.

        The limits do not stop gradients, so that a w can be found for an image.
        """
        image: Tensor = self.synthesis(w)
        return image + (image.clamp(-1, 1) - image).detach()

    def generate(
        self, latent: Tensor, condition: Tensor | None = None, *, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        """``image`` ``(B, C, *image_size)`` in -1..1.

        Args:
            latent: Standard normal ``(B, latent)``.
            condition: Numbers ``(B,)`` if there are conditions.
            truncation: Distance from the condition's mean w, as a part of the full one.

        Raises:
            InputError: A condition is missing, or there are none.
        """
        w = self.map(latent, condition)
        if truncation != 1:
            centre = self.w_mean[condition] if self.conditions else self.w_mean
            w = centre + truncation * (w - centre)
        return {"image": self.synthesis(w).clamp(-1, 1)}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic's loss, then the generator's against the new critic."""
        config, real = self.config, batch["image"]
        condition = batch.get("condition") if self.conditions else None
        self._check(condition)
        step = self.steps.advance()
        to_critic, to_generator = ADVERSARIAL[config.loss]

        with torch.no_grad():
            fake, w = self._draw(real, condition)
            self._follow(w, condition)
            seen = self._augmented(torch.cat([real, fake]))
        real_logits, fake_logits = self._judge(seen, condition)
        loss = to_critic(real_logits, fake_logits)
        boundary = BOUNDARY[config.loss]
        parts = critic_parts(real_logits, fake_logits, boundary=boundary)
        if config.loss == "non_saturating":
            parts["minmax"] = minmax_value(real_logits, fake_logits).detach()
        if isinstance(self.augment, AdaptiveAugment):
            middle = separation(real_logits.detach(), fake_logits.detach(), boundary)
            self.augment.update(real_logits.detach() - middle)
            parts["augmentation"] = self.augment.probability.clone()
        if config.r1_gamma and step % config.r1_interval == 0:
            penalty = r1(
                lambda x: self.critic(x, condition), seen[: len(real)], gamma=config.r1_gamma
            )
            loss = loss + config.r1_interval * penalty
            parts["r1"] = penalty.detach()
        yield "critic", loss, parts

        with frozen(self.critic):
            fake, _ = self._draw(real, condition)
            if config.loss == "relativistic_average":
                seen = self._augmented(torch.cat([real, fake]))
                real_logits, fake_logits = self._judge(seen, condition)
            else:
                fake_logits = self.critic(self._augmented(fake), condition)
        loss = to_generator(fake_logits, real_logits.detach())
        parts = {"fake_score": fake_logits.detach().mean()}
        if config.path_length_weight and step % config.path_length_interval == 0:
            penalty = self._path_length(real, condition, step)
            loss = loss + config.path_length_interval * config.path_length_weight * penalty
            parts["path_length"] = self.path_mean.clone()
        yield "generator", loss, parts

    def _draw(self, like: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """As many new images with mixed styles, and their first w."""
        batch, layers = len(like), self.synthesis.layers
        latents = torch.randn(2, batch, self.config.latent, device=like.device)
        twice = None if condition is None else condition.repeat(2)
        w, other = self.mapping(latents.flatten(0, 1), twice).chunk(2)
        crossover = torch.randint(1, layers, (batch,), device=like.device)
        mixes = torch.rand(batch, device=like.device) < self.config.style_mixing
        crossover = torch.where(mixes, crossover, layers)
        return self.synthesis(w, other, crossover, random_noise=True), w

    def _judge(self, images: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of the first and of the second half of the images, in one pass."""
        twice = None if condition is None else condition.repeat(2)
        first, second = self.critic(images, twice, parts=2).chunk(2)
        return first, second

    def _augmented(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            augmented: Tensor = self.augment(images.float())
        return augmented

    @torch.no_grad()
    def _follow(self, w: Tensor, condition: Tensor | None) -> None:
        """Move the mean w of every condition in the batch.

        At first it is the plain mean of the batches, so that it does not start from zero.
        """
        groups = len(self.w_mean)
        with torch.autocast(w.device.type, enabled=False):
            everyone = w.new_ones(len(w), 1)
            member = everyone if condition is None else one_hot(condition, groups)
            count = member.sum(0)
            mean = member.T @ w / count.clamp(min=1)[:, None]
        present = (count > 0).float()
        rate = present * (1 / (self.w_count + 1)).clamp(min=1 - self.config.w_mean_decay)
        self.w_mean.lerp_(mean, rate[:, None].expand_as(mean))
        self.w_count += present

    def _path_length(self, like: Tensor, condition: Tensor | None, step: int) -> Tensor:
        """Squared deviation of path lengths from their running mean, which moves."""
        batch = max(1, len(like) // PATH_SHARE)
        latents = torch.randn(batch, self.config.latent, device=like.device)
        with torch.autocast(like.device.type, enabled=False):
            w = self.mapping(latents, None if condition is None else condition[:batch])
            image = self.synthesis(w, random_noise=True)
            noise = torch.randn_like(image) / math.sqrt(math.prod(self.image_size))
            (gradient,) = torch.autograd.grad((image * noise).sum(), w, create_graph=True)
            # The paper's code averages over layers, each with a w of its own.
            lengths = (gradient.square().sum(1) / self.synthesis.layers + 1e-12).sqrt()
        # The plain mean at first: a mean that starts from 0 would flatten the new generator.
        rate = max(1 - PATH_DECAY, 1 / (1 + step // self.config.path_length_interval))
        mean = self.path_mean.lerp(lengths.detach().mean(), rate)
        self.path_mean.copy_(mean)
        return (lengths - mean).square().mean()

    def _check(self, condition: Tensor | None) -> None:
        if (condition is None) != (self.conditions == 0):
            given = "none" if condition is None else "one"
            raise InputError(f"{self.conditions} conditions to choose from, but {given} was given")


def _augmentation(config: StyleGAN2Config) -> nn.Module:
    """What both real and made images pass through before the critic."""
    if config.augmentation == "diffaugment":
        return DiffAugment(config.operations or DIFFERENTIABLE)
    if config.augmentation == "adaptive":
        return AdaptiveAugment(
            2,
            config.operations or ADAPTIVE,
            target=config.adaptive_target,
            speed=config.adaptive_images,
        )
    return nn.Identity()
