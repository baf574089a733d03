"""GAN: a generator and a critic that tells its images from real ones, in all their usual forms.

Goodfellow et al., "Generative Adversarial Nets" (2014): ``min_G max_D E[log D(x)] +
E[log(1 - D(G(z)))]`` with z standard normal, where G is trained to raise ``log D(G(z))`` instead
(non-saturating). What came later changed one part at a time, and so does the configuration:

- ``architecture``: fully connected; DCGAN (Radford et al. 2016); ResNet (Gulrajani et al. 2017).
- ``loss``: least squares (Mao et al. 2017), Wasserstein (Arjovsky et al. 2017: ``clip`` 0.01,
  RMSprop 5e-5, 5 critic steps), hinge (Lim and Ye 2017), relativistic average
  (Jolicoeur-Martineau 2019).
- ``penalty``: WGAN-GP (Gulrajani et al. 2017: 10, Adam 1e-4 with betas 0 and 0.9, 5 critic steps),
  DRAGAN (Kodali et al. 2017), R1 (Mescheder et al. 2018), which may be lazy (Karras et al. 2020).
- ``conditioning``: concatenation (Mirza and Osindero 2014), auxiliary classifier (ACGAN; Odena et
  al. 2017), projection (Miyato and Koyama 2018).
- ``spectral_norm`` (Miyato et al. 2018), two learning rates (Heusel et al. 2017), instance noise
  (Sønderby et al. 2017), DiffAugment (Zhao et al. 2020) and adaptive augmentation (Karras 2020).

A batch may also hold ``teacher_latent`` and the ``teacher_image`` that a larger generator makes of
it; then the generator imitates these too (Aguinaldo et al., "Compressing GANs using Knowledge
Distillation", 2019: joint loss).

The names dcgan, lsgan, wgan, wgan_gp, hinge, cgan, acgan and projection_gan stand for this method
with their papers' settings. ``image`` of :meth:`GAN.generate` is in -1..1, as the training images.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer, RMSprop

from medgen.augmentation import ADAPTIVE, DIFFERENTIABLE, AdaptiveAugment, DiffAugment
from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import (
    ADVERSARIAL,
    BOUNDARY,
    critic_parts,
    dragan,
    minmax_value,
    r1,
    separation,
    wgan_gp,
)
from medgen.networks.discriminators import (
    Conditioning,
    Critic,
    DCGANBody,
    MLPBody,
    Norm,
    ResNetBody,
)
from medgen.networks.generators import DCGANGenerator, MLPGenerator, ResNetGenerator
from medgen.networks.layers import frozen

Parts = dict[str, Tensor]


class GANConfig(Config):
    """Settings of an adversarial pair of networks."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for images, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels")
    image_size: tuple[int, ...] = Field((64, 64), description="size of the images it makes")
    conditions: int = Field(0, ge=0, description="number of conditions; 0: none")
    latent: int = Field(100, ge=1, description="length of the latent vector")
    architecture: Literal["mlp", "dcgan", "resnet"] = Field(
        "dcgan", description="kind of both networks"
    )
    width: int = Field(64, ge=1, description="channels at full size, or units of a hidden layer")
    loss: Literal[
        "non_saturating", "saturating", "least_squares", "wasserstein", "hinge",
        "relativistic_average",
    ] = Field("non_saturating", description="adversarial loss")  # fmt: skip
    conditioning: Conditioning = Field(
        "none", description="how the critic uses the condition; auxiliary: it has to guess it"
    )
    auxiliary_weight: float = Field(
        1.0, ge=0, description="weight of the classifier's cross entropy"
    )
    penalty: Literal["none", "wgan_gp", "dragan", "r1"] = Field(
        "none", description="gradient penalty of the critic"
    )
    penalty_weight: float = Field(10.0, ge=0, description="its lambda; gamma for r1")
    penalty_every: int = Field(
        1, ge=1, description="steps between penalties, which are multiplied by as much (lazy)"
    )
    clip: float | None = Field(None, gt=0, description="largest weight of the critic (WGAN)")
    critic_norm: Norm = Field("batch", description="normalisation inside a dcgan critic")
    spectral_norm: Literal["none", "critic", "both"] = Field(
        "none", description="networks whose layers are kept at norm 1"
    )
    augmentation: Literal["none", "diffaugment", "adaptive"] = Field(
        "none", description="augmentation of all images that the critic sees"
    )
    augment_with: tuple[str, ...] | None = Field(
        None, description="operations of the augmentation; none: all it has"
    )
    augment_speed: int = Field(
        500_000, ge=1, description="images in which adaptive augmentation can go from none to all"
    )
    instance_noise: float = Field(
        0.0, ge=0, description="deviation of noise on all images that the critic sees, at the start"
    )
    noise_steps: int = Field(10_000, ge=1, description="steps in which the noise falls to 0")
    imitation_weight: float = Field(
        10.0, ge=0, description="weight of the mean absolute difference from a teacher's images"
    )
    n_critic: int = Field(
        1, ge=1, description="critic steps for each step of the generator; divides the batch"
    )
    optimizer: Literal["adam", "rmsprop"] = Field("adam", description="of both networks")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's betas")
    generator_rate: float = Field(2e-4, gt=0, description="learning rate of the generator")
    critic_rate: float = Field(2e-4, gt=0, description="learning rate of the critic")


class GAN(nn.Module):
    """Makes images from noise.

    Raises:
        InputError: Settings that do not fit together.
    """

    Config = GANConfig
    input_slices = 1
    divisor = 1
    training_only = ("critic", "augmentation")
    steps: Tensor

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.channels, self.image_size = config.channels, config.image_size
        self.conditions = config.conditions
        self.latent_shape = (config.latent,)
        self.generator = _generator(config)
        self.critic = _critic(config)
        self.augmentation = _augmentation(config)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each network, each with its own rate."""
        config = self.config
        rates = {"critic": config.critic_rate, "generator": config.generator_rate}
        networks = {"critic": self.critic, "generator": self.generator}
        if config.optimizer == "rmsprop":
            return {n: RMSprop(networks[n].parameters(), lr=rates[n]) for n in rates}
        return {n: Adam(networks[n].parameters(), rates[n], config.betas) for n in rates}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Parts]]:
        """The critic's loss on each part of the batch, then the generator's on the last one."""
        images = _parts_of(batch["image"], self.config.n_critic)
        conditions: list[Any] = [None] * len(images)
        if self.conditions:
            conditions = _parts_of(batch["condition"], self.config.n_critic)
        for real, condition in zip(images, conditions, strict=True):
            yield "critic", *self._critic_loss(real, condition)
            if self.config.clip is not None:
                for weight in self.critic.parameters():
                    weight.data.clamp_(-self.config.clip, self.config.clip)
        loss, parts = self._generator_loss(images[-1], conditions[-1])
        if "teacher_image" in batch:
            condition = batch["condition"] if self.conditions else None
            copy = self.generator(batch["teacher_latent"], condition)
            imitation = F.l1_loss(copy.float(), batch["teacher_image"])
            loss = loss + self.config.imitation_weight * imitation
            parts["imitation"] = imitation.detach()
        yield "generator", loss, parts
        self.steps += 1

    def generate(
        self, latent: Tensor, condition: Tensor | None = None, *, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        """Images of latent vectors.

        Args:
            latent: Standard normal ``(B, latent)``.
            condition: Numbers of conditions ``(B,)``, if the method has any.
            truncation: Factor on the latent; below 1 images are more typical and less diverse.

        Returns:
            ``image`` ``(B, C, *image_size)`` float32 in -1..1.

        Raises:
            InputError: A condition is missing, or there are none.
        """
        if (condition is None) != (self.conditions == 0):
            given = "none" if condition is None else "one"
            raise InputError(f"{self.conditions} conditions to choose from, but {given} was given")
        return {"image": self.generator(latent * truncation, condition).float()}

    def _critic_loss(self, image: Tensor, condition: Tensor | None) -> tuple[Tensor, Parts]:
        config = self.config
        with torch.no_grad():
            real, fake = self._shown(image), self._shown(self._make(image, condition))
        of_real, of_fake = self.critic(real, condition), self.critic(fake, condition)
        loss = ADVERSARIAL[config.loss][0](of_real.real, of_fake.real)
        boundary = BOUNDARY[config.loss]
        parts = critic_parts(of_real.real, of_fake.real, boundary=boundary)
        if config.loss in {"non_saturating", "saturating"}:
            parts["minmax"] = minmax_value(of_real.real, of_fake.real).detach()
        if of_real.classes is not None and condition is not None:
            guess = F.cross_entropy(of_real.classes, condition)
            guess = guess + F.cross_entropy(of_fake.classes, condition)
            loss = loss + config.auxiliary_weight * guess
            parts["classes"] = guess.detach()
        if config.penalty != "none" and int(self.steps) % config.penalty_every == 0:
            penalty = self._penalty(real, fake, condition)
            loss = loss + config.penalty_every * penalty
            parts["penalty"] = penalty.detach()
        if isinstance(self.augmentation, AdaptiveAugment):
            middle = separation(of_real.real.detach(), of_fake.real.detach(), boundary)
            self.augmentation.update(of_real.real.detach() - middle)
            parts["augmentation"] = self.augmentation.probability.clone()
        return loss, parts

    def _generator_loss(self, image: Tensor, condition: Tensor | None) -> tuple[Tensor, Parts]:
        config = self.config
        with frozen(self.critic):
            of_fake = self.critic(self._shown(self._make(image, condition)), condition)
            of_real = of_fake
            if config.loss == "relativistic_average":
                of_real = self.critic(self._shown(image), condition)
        loss = ADVERSARIAL[config.loss][1](of_fake.real, of_real.real)
        parts = {"fake_score": of_fake.real.mean().detach()}
        if of_fake.classes is not None and condition is not None:
            guess = F.cross_entropy(of_fake.classes, condition)
            loss = loss + config.auxiliary_weight * guess
            parts["classes"] = guess.detach()
        return loss, parts

    def _make(self, image: Tensor, condition: Tensor | None) -> Tensor:
        """As many new images as are given."""
        latent = torch.randn(len(image), *self.latent_shape, device=image.device)
        made: Tensor = self.generator(latent, condition)
        return made

    def _shown(self, image: Tensor) -> Tensor:
        """What the critic sees of images: augmented, and for some time under noise."""
        shown: Tensor = self.augmentation(image.float())
        if self.config.instance_noise:
            left = (1 - self.steps / self.config.noise_steps).clamp(min=0)
            shown = shown + self.config.instance_noise * left * torch.randn_like(shown)
        return shown

    def _penalty(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        weight = self.config.penalty_weight

        def score(points: Tensor) -> Tensor:
            result: Tensor = self.critic(points, condition).real
            return result

        if self.config.penalty == "wgan_gp":
            return wgan_gp(score, real, fake, weight=weight)
        if self.config.penalty == "dragan":
            return dragan(score, real, weight=weight)
        return r1(score, real, gamma=weight)


def _check(config: GANConfig) -> None:
    """Refuse settings that contradict each other."""
    if len(config.image_size) != config.spatial_dims or min(config.image_size) < 1:
        raise InputError(
            f"image_size needs {config.spatial_dims} numbers of 1 or more, got {config.image_size}"
        )
    if (config.conditions > 0) != (config.conditioning != "none"):
        raise InputError(
            f"conditions is {config.conditions}, but conditioning is {config.conditioning!r}",
            "A conditional GAN needs both: for example conditions: 2, conditioning: projection.",
        )
    if (config.architecture, config.critic_norm) == ("dcgan", "batch") and config.penalty != "none":
        raise InputError(
            f"penalty {config.penalty} is of each image alone, but batch normalisation mixes them",
            "Set critic_norm to layer or none.",
        )


def _parts_of(values: Tensor, count: int) -> list[Tensor]:
    """A batch in ``count`` equal parts."""
    if len(values) % count:
        raise InputError(
            f"batch_size must be a multiple of n_critic, got {len(values)} and {count}",
            f"For example batch_size: {-(-len(values) // count) * count}.",
        )
    return list(values.chunk(count))


def _generator(config: GANConfig) -> nn.Module:
    shared = (config.latent, config.channels, config.image_size, config.width, config.conditions)
    if config.architecture == "mlp":
        return MLPGenerator(*shared)
    kind = DCGANGenerator if config.architecture == "dcgan" else ResNetGenerator
    return kind(config.spatial_dims, *shared, spectral_norm=config.spectral_norm == "both")


def _critic(config: GANConfig) -> Critic:
    normal = config.spectral_norm != "none"
    size: dict[str, Any] = {
        "image_size": config.image_size, "width": config.width, "spectral_norm": normal
    }  # fmt: skip
    body: Any = partial(MLPBody, **size)
    if config.architecture == "dcgan":
        body = partial(DCGANBody, config.spatial_dims, norm=config.critic_norm, **size)
    elif config.architecture == "resnet":
        body = partial(ResNetBody, config.spatial_dims, **size)
    return Critic(
        body,
        config.channels,
        config.conditions,
        config.conditioning,
        offset=BOUNDARY[config.loss] is not None,
        spectral_norm=normal,
    )


def _augmentation(config: GANConfig) -> nn.Module:
    if config.augmentation == "none":
        return nn.Identity()
    if config.augmentation == "diffaugment":
        return DiffAugment(config.augment_with or DIFFERENTIABLE)
    return AdaptiveAugment(
        config.spatial_dims, config.augment_with or ADAPTIVE, speed=config.augment_speed
    )
