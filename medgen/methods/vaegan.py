"""VAE-GAN: a variational autoencoder whose measure of likeness is what a critic has learnt to see.

Larsen, Soenderby, Larochelle and Winther, "Autoencoding beyond pixels using a learned similarity
metric" (ICML 2016). The decoder of the autoencoder is the generator of the adversarial network.
With ``x~ = Dec(z)``, ``z ~ q(z|x)``, and ``x_p = Dec(z_p)``, ``z_p ~ N(0, I)``, algorithm 1 is

- critic: maximise ``log D(x) + log(1 - D(x~)) + log(1 - D(x_p))``;
- encoder: minimise ``beta KL(q(z|x) || N(0, I)) + 1/2 |D_l(x) - D_l(x~)|^2``;
- decoder: minimise ``gamma 1/2 |D_l(x) - D_l(x~)|^2`` and deceive the critic with x~ and x_p,

where ``D_l`` is the critic's last hidden layer, so that errors are measured in features and not
in voxels. Conditions are concatenated: as numbers to the latent vector, as constant channels to
the images that encoder and critic see. Networks are those of DCGAN, as in the paper.

Two choices differ from the paper: errors and divergences are means over features and latent
variables, so that ``beta`` and ``gamma`` hardly depend on sizes; and the decoder maximises
``log D`` (the non-saturating loss) where the paper minimises ``log(1 - D)``.
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
from medgen.losses import ADVERSARIAL, critic_parts, kl_to_standard_normal, squared_error
from medgen.networks.discriminators import DCGANBody
from medgen.networks.generators import DCGANGenerator, with_condition
from medgen.networks.layers import frozen, one_hot

# exp() of these is still finite and positive in float32.
LOGVAR_LIMITS = (-30.0, 20.0)

critic_loss, generator_loss = ADVERSARIAL["non_saturating"]


class VAEGANConfig(Config):
    """Settings of the VAE-GAN."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for images, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels")
    image_size: tuple[int, ...] = Field((64, 64), description="size of the images it makes")
    conditions: int = Field(0, ge=0, description="number of conditions; 0: none")
    latent: int = Field(128, ge=1, description="length of the latent vector")
    width: int = Field(
        32, ge=1, description="channels at the finest resolution; doubled with each halving"
    )
    beta: float = Field(0.01, ge=0, description="weight of the divergence from the prior")
    gamma: float = Field(
        1.0, ge=0, description="weight of likeness against deceiving the critic, in the decoder"
    )
    learning_rate: float = Field(2e-4, gt=0, description="Adam learning rate of all networks")


class VAEGAN(nn.Module):
    """Makes images from noise, and encodes real ones.

    Raises:
        InputError: ``image_size`` has a wrong length, or is no small grid times a power of two.
    """

    Config = VAEGANConfig
    input_slices = 1
    divisor = 1
    training_only = ("critic", "encoder")

    def __init__(self, config: VAEGANConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.channels, self.conditions = config.channels, config.conditions
        self.image_size, self.latent_shape = config.image_size, (config.latent,)
        if len(config.image_size) != dims:
            raise InputError(f"image_size needs {dims} numbers, got {config.image_size}")
        self.encoder = _Eye(config, outputs=2 * config.latent)
        self.decoder = DCGANGenerator(
            dims, config.latent, config.channels, config.image_size, config.width,
            config.conditions,
        )  # fmt: skip
        self.critic = _Eye(config, outputs=1)

    def optimizers(self) -> dict[str, Optimizer]:
        """Algorithm 1 updates three networks, each by its own loss."""
        networks = {"critic": self.critic, "encoder": self.encoder, "generator": self.decoder}
        rate = self.config.learning_rate
        return {
            name: Adam(network.parameters(), lr=rate, betas=(0.5, 0.999))
            for name, network in networks.items()
        }

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Critic, encoder and decoder; each sees those before it already updated."""
        image = batch["image"]
        condition = batch["condition"] if self.conditions else None
        prior = torch.randn(len(image), self.config.latent, device=image.device)
        mean, logvar = self.encode(image, condition)
        latent = mean + torch.exp(logvar / 2) * torch.randn_like(mean)

        with torch.no_grad():
            fakes = self._decode(torch.cat([latent, prior]), _twice(condition))
        real, _ = self.critic(image, condition)
        fake, _ = self.critic(fakes, _twice(condition))
        yield "critic", critic_loss(real[:, 0], fake[:, 0]), critic_parts(real, fake)

        with frozen(self.critic), frozen(self.decoder):
            error = self._error(image, self._decode(latent, condition), condition)
        divergence = kl_to_standard_normal(mean, logvar, reduction="mean")
        parts = {"likeness": error.detach(), "divergence": divergence.detach()}
        yield "encoder", error + self.config.beta * divergence, parts

        with frozen(self.critic):
            fakes = self._decode(torch.cat([latent.detach(), prior]), _twice(condition))
            fake, _ = self.critic(fakes, _twice(condition))
            error = self._error(image, fakes[: len(image)], condition)
        loss = generator_loss(fake[:, 0], real[:, 0].detach()) + self.config.gamma * error
        parts = {"fake_score": fake.detach().mean(), "likeness": error.detach()}
        yield "generator", loss, parts

    def encode(self, image: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log of the variance of the posterior, each ``(B, latent)`` in float32."""
        posterior, _ = self.encoder(image, condition)
        mean, logvar = posterior.chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_LIMITS)

    def generate(
        self, latent: Tensor, condition: Tensor | None = None, *, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        """Images of latent vectors.

        Args:
            latent: ``(B, latent)``, standard normal.
            condition: ``(B,)``, 0..conditions-1; none for a network without conditions.
            truncation: Factor of the latent vector; below 1 images are more typical and vary less.

        Returns:
            ``image`` ``(B, C, *image_size)``, -1..1.

        Raises:
            InputError: A condition is missing, or there are none.
        """
        self._check(condition)
        return {"image": self._decode(latent * truncation, condition)}

    def map(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the decoder takes: latents beside one-hot conditions ``(B, latent + conditions)``.

        Between two of these vectors lie images between two conditions.
        """
        self._check(condition)
        return with_condition(latent, condition, self.conditions)

    def synthesize(self, w: Tensor) -> Tensor:
        """Images ``(B, C, *image_size)`` in -1..1 of vectors as :meth:`map` gives them."""
        return self.decoder.decode(w).float()

    @property
    def w_mean(self) -> Tensor:
        """The vector of each condition's mean latent ``(conditions or 1, latent + conditions)``."""
        weight = next(self.decoder.parameters())
        groups = max(1, self.conditions)
        mean = weight.new_zeros(groups, self.config.latent)
        condition = torch.arange(groups, device=weight.device) if self.conditions else None
        return with_condition(mean, condition, self.conditions)

    def _check(self, condition: Tensor | None) -> None:
        if (condition is None) != (self.conditions == 0):
            given = "none" if condition is None else "one"
            raise InputError(f"{self.conditions} conditions to choose from, but {given} was given")

    def _decode(self, latent: Tensor, condition: Tensor | None) -> Tensor:
        image: Tensor = self.decoder(latent, condition)
        return image.float()

    def _error(self, image: Tensor, copy: Tensor, condition: Tensor | None) -> Tensor:
        """Half the mean squared difference of what the critic's last hidden layer sees."""
        with torch.no_grad():
            _, wanted = self.critic(image, condition)
        _, seen = self.critic(copy, condition)
        return squared_error(seen, wanted, reduction="mean") / 2


class _Eye(nn.Module):
    """DCGAN's discriminator with any number of outputs, which also tells what it saw."""

    def __init__(self, config: VAEGANConfig, outputs: int) -> None:
        super().__init__()
        self.conditions = config.conditions
        seen = config.channels + config.conditions
        self.body = DCGANBody(config.spatial_dims, seen, config.image_size, config.width)
        self.head = nn.Linear(self.body.features, outputs)

    def forward(self, image: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs ``(B, outputs)`` and features ``(B, F)`` of images ``(B, C, *spatial)``."""
        if self.conditions:
            assert condition is not None
            maps = one_hot(condition, self.conditions)[(..., *(None,) * (image.ndim - 2))]
            image = torch.cat([image, maps.expand(-1, -1, *image.shape[2:])], 1)
        features = self.body(image)
        return self.head(features).float(), features.float()


def _twice(condition: Tensor | None) -> Tensor | None:
    return None if condition is None else torch.cat([condition, condition])
