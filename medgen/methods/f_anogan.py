"""f-AnoGAN: a generator of healthy images, and an encoder that finds an image's nearest one.

Schlegl et al., "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks"
(Med Image Anal 54:30, 2019). First a Wasserstein GAN with gradient penalty learns to make healthy
images ``G(z)``, z standard normal. Then G and its critic stay as they are, and the encoder E learns
the way back (the paper's izi_f architecture):

``mean (x - G(E(x)))^2 + kappa mean (f(x) - f(G(E(x))))^2``,

f being what the critic sees in its last hidden layer. The training is one: for ``gan_steps`` steps
all three networks learn, each by its own loss, and from then on the encoder alone. The paper
begins with the encoder only then; here it follows the generator from the start, so that a run that
is cut short has one. Networks are the encoder and decoder of Baur et al. (2021); codes are not
bounded by a tanh.

``restored`` is ``G(E(x))`` in the image's unit. ``score`` is the paper's loss at every voxel, at
least 0, in squared units: the squared difference, plus kappa times that of the features, enlarged.
Its mean over an image of the network's size is the paper's score A(x).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.losses import wasserstein_generator
from medgen.methods._adversarial import (
    AdversarialCoder,
    DenseConfig,
    Parts,
    wasserstein_step,
)
from medgen.networks.counter import Counter
from medgen.networks.critics import ImageCritic
from medgen.networks.layers import frozen


class FAnoGANConfig(DenseConfig):
    """Settings of generator, critic and encoder."""

    kappa: float = Field(1.0, ge=0, description="weight of the features' distance")
    gan_steps: int = Field(
        10_000, ge=0, description="steps after which only the encoder goes on learning"
    )
    critic_features: tuple[int, ...] = Field(
        (32, 64, 128, 128), min_length=1, description="critic channels after each halving"
    )
    critic_steps: int = Field(5, ge=1, description="critic steps for each step of the generator")
    gan_rate: float = Field(1e-4, gt=0, description="Adam learning rate of generator and critic")
    betas: tuple[float, float] = Field((0.0, 0.9), description="Adam's betas of these two")
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate of the encoder")


class FAnoGAN(AdversarialCoder):
    """Replaces an image by the nearest one that a generator of healthy images makes.

    Raises:
        InputError: ``image_size`` has a wrong length, or cannot be halved often enough.
    """

    Config = FAnoGANConfig

    def __init__(self, config: FAnoGANConfig) -> None:
        super().__init__(config)
        self.config = config
        # Its features are part of the score, so packages keep it.
        self.critic = ImageCritic(
            config.spatial_dims, config.channels, config.critic_features, offset=False
        )
        self.steps = Counter()

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each network."""
        config = self.config
        rate, betas = config.gan_rate, config.betas
        return {
            "critic": Adam(self.critic.parameters(), rate, betas),
            "generator": Adam(self.coder.decoder.parameters(), rate, betas),
            "encoder": Adam(self.coder.encoder.parameters(), config.learning_rate),
        }

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Parts]]:
        """Critic and generator as long as they learn, then the encoder."""
        image, _ = self.coder.fitted(batch["healthy"])
        if self.steps.advance() < self.config.gan_steps:
            for _ in range(self.config.critic_steps):
                with torch.no_grad():
                    fake = self._made(image)
                yield "critic", *wasserstein_step(self.critic, image, fake)
            with frozen(self.critic):
                verdict = self.critic(self._made(image))
            yield (
                "generator",
                wasserstein_generator(verdict, verdict.detach()),
                {"fake_score": verdict.detach().mean()},
            )
        yield "encoder", *self._encoder_step(image)

    def _made(self, image: Tensor) -> Tensor:
        """As many new images as are given."""
        shape = (len(image), self.config.latent_channels)
        return self.decode(torch.randn(shape, device=image.device))

    def _encoder_step(self, image: Tensor) -> tuple[Tensor, Parts]:
        """How far the encoder's image is from the given one, in voxels and in features."""
        learning = self.coder.decoder.training
        self.coder.decoder.eval()  # as it will be used: its norms as they are
        with frozen(self.coder.decoder), frozen(self.critic):
            copy = self.decode(self.encode(image))
            seen, wanted = self.critic.features(copy), self.critic.features(image)
        self.coder.decoder.train(learning)
        error, distance = F.mse_loss(copy, image), F.mse_loss(seen, wanted)
        parts = {"reconstruction": error.detach(), "features": distance.detach()}
        return error + self.config.kappa * distance, parts

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` and ``score`` ``(B, 1, *spatial)``."""
        return self.copy_and_score(image, self.critic, self.config.kappa, torch.square)
