"""AnoVAEGAN: a variational autoencoder whose copies a critic cannot tell from images.

Baur, Wiestler, Albarqouni and Navab, "Deep Autoencoding Models for Unsupervised Anomaly
Segmentation in Brain MR Images" (2018). A VAE's copies are blurred, and blur looks like an anomaly
everywhere; the critic D demands copies as sharp as images. Encoder and decoder minimise

``|x - x'|_1 + beta KL(q(z|x) || N(0, I)) - w E D(x')``,  ``x' = Dec(z)``, ``z ~ q(z|x)``,

the critic ``E D(x') - E D(x)`` with gradient penalty (Gulrajani et al. 2017), as in the authors'
code for their comparison of 2021. Two choices differ from that code: the error is a mean over
voxels and the divergence one over latent variables, so that ``beta`` hardly depends on sizes; and
the three terms are one loss, so that a weight can say how much the critic counts.

``restored`` is decoded from the posterior's mean, never from a sample, and has the image's unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.losses import kl_to_standard_normal, wasserstein_generator
from medgen.methods._adversarial import AdversarialCoder, Parts, wasserstein_step
from medgen.methods._coding import CodedConfig
from medgen.networks.autoencoding import LOGVAR_LIMITS
from medgen.networks.critics import ImageCritic
from medgen.networks.layers import frozen


class AnoVAEGANConfig(CodedConfig):
    """Settings of the variational autoencoder and its critic."""

    beta: float = Field(0.001, ge=0, description="weight of the divergence from the prior")
    adversarial_weight: float = Field(
        0.005,
        ge=0,
        description="weight of the critic's verdict; the penalty keeps the length of its gradient "
        "near 1, and the mean absolute error of n voxels has one of 1 / sqrt(n)",
    )
    critic_features: tuple[int, ...] = Field(
        (32, 64, 128, 128), min_length=1, description="critic channels after each halving"
    )
    critic_steps: int = Field(1, ge=1, description="critic steps for each step of the others")
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate of the autoencoder")
    critic_rate: float = Field(1e-4, gt=0, description="Adam learning rate of the critic")
    betas: tuple[float, float] = Field((0.5, 0.9), description="Adam's betas of both")


class AnoVAEGAN(AdversarialCoder):
    """Copies images through a Gaussian latent space, without blur.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    Config = AnoVAEGANConfig
    training_only = ("critic",)

    def __init__(self, config: AnoVAEGANConfig) -> None:
        super().__init__(config, moments=2)
        self.config = config
        self.critic = ImageCritic(
            config.spatial_dims, config.channels, config.critic_features, offset=False
        )

    def optimizers(self) -> dict[str, Optimizer]:
        """One for the critic, one for encoder and decoder."""
        config = self.config
        return {
            "critic": Adam(self.critic.parameters(), config.critic_rate, config.betas),
            "autoencoder": Adam(self.coder.parameters(), config.learning_rate, config.betas),
        }

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the variance, each ``(B, latent_channels[, *spatial / factor])``."""
        mean, logvar = self.coder.encode(image).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_LIMITS)

    def latent(self, image: Tensor) -> Tensor:
        """Means of the posteriors of images of any size, flattened ``(B, K)``."""
        return self.encode(self.coder.fitted(image)[0])[0].flatten(1)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Parts]]:
        """The critic's loss, then the autoencoder's against the updated critic."""
        config = self.config
        image, _ = self.coder.fitted(batch["healthy"])
        mean, logvar = self.encode(image)
        copy = self.decode(mean + torch.exp(logvar / 2) * torch.randn_like(mean))
        for _ in range(config.critic_steps):
            yield "critic", *wasserstein_step(self.critic, image, copy.detach())

        with frozen(self.critic):
            adversarial = wasserstein_generator(self.critic(copy), copy)
        error = F.l1_loss(copy, image)
        divergence = kl_to_standard_normal(mean, logvar, reduction="mean")
        loss = error + config.beta * divergence + config.adversarial_weight * adversarial
        parts = {"reconstruction": error, "divergence": divergence, "adversarial": adversarial}
        yield "autoencoder", loss, {name: part.detach() for name, part in parts.items()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit, decoded from the mean."""
        fitted, inside = self.coder.fitted(image)
        return {"restored": self.decode(self.encode(fitted)[0])[inside]}
