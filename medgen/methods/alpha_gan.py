"""alpha-GAN: an autoencoder with a critic of its images and a critic of its codes.

Rosca et al., "Variational Approaches for Auto-Encoding Generative Adversarial Networks" (2017);
used for chest radiographs by Nakao et al., "Unsupervised Deep Anomaly Detection in Chest
Radiographs" (J Digit Imaging 34:418, 2021). In place of a VAE's two terms, a likelihood and a
divergence, it learns from two critics. With ``z = E(x)``, ``x' = G(z)``, ``x_p = G(z_p)``,
``z_p ~ N(0, I)``, each network in its turn minimises

- encoder: ``lambda |x - x'|_1 + R(C(z))``;
- generator: ``lambda |x - x'|_1 + R(D(x')) + R(D(x_p))``;
- critic of images: the cross entropy of calling x real, x' and x_p not;
- critic of codes: the cross entropy of calling z_p real, z not;

where ``R(d) = -log s(d) + log(1 - s(d))``, s the sigmoid, which is ``-d``. (The first version of
Rosca et al. swapped the two terms of the last line.) Errors are means over voxels.

``restored`` is ``G(E(x))`` in the image's unit. ``score``, at least 0, is the absolute difference
between image and copy, plus kappa times that of what the critic of images sees of both, enlarged;
kappa 0 leaves the L1 distance.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.losses import critic_parts, cross_entropy_critic, wasserstein_generator
from medgen.methods._adversarial import AdversarialCoder, DenseConfig, Parts
from medgen.networks.critics import CodeCritic, ImageCritic
from medgen.networks.layers import frozen


class AlphaGANConfig(DenseConfig):
    """Settings of encoder, generator and the two critics."""

    reconstruction_weight: float = Field(
        20.0, ge=0, description="lambda, the weight of the mean absolute error"
    )
    kappa: float = Field(
        0.1, ge=0, description="weight of the features' distance in the score, not in training"
    )
    critic_features: tuple[int, ...] = Field(
        (32, 64, 128, 128), min_length=1, description="critic channels after each halving"
    )
    code_critic_width: int = Field(
        512, ge=1, description="units of the two hidden layers of the critic of codes"
    )
    learning_rate: float = Field(
        5e-4, gt=0, description="Adam learning rate of encoder and generator"
    )
    critic_rate: float = Field(1e-4, gt=0, description="Adam learning rate of the critics")
    betas: tuple[float, float] = Field((0.5, 0.9), description="Adam's betas of all")


class AlphaGAN(AdversarialCoder):
    """Copies images; its codes look like noise and its images like real ones.

    Raises:
        InputError: ``image_size`` has a wrong length, or cannot be halved often enough.
    """

    Config = AlphaGANConfig
    training_only = ("code_critic",)

    def __init__(self, config: AlphaGANConfig) -> None:
        super().__init__(config)
        self.config = config
        # Its features are part of the score, so packages keep it.
        self.critic = ImageCritic(config.spatial_dims, config.channels, config.critic_features)
        self.code_critic = CodeCritic(config.latent_channels, config.code_critic_width)

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each network, in the order of the paper's algorithm 1."""
        rate, critic_rate = self.config.learning_rate, self.config.critic_rate
        networks = {
            "encoder": (self.coder.encoder, rate),
            "generator": (self.coder.decoder, rate),
            "critic": (self.critic, critic_rate),
            "code_critic": (self.code_critic, critic_rate),
        }
        betas = self.config.betas
        return {name: Adam(net.parameters(), own, betas) for name, (net, own) in networks.items()}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Parts]]:
        """Encoder, generator and the two critics; each sees those before it already updated."""
        image, _ = self.coder.fitted(batch["healthy"])
        weight = self.config.reconstruction_weight
        prior = torch.randn(len(image), self.config.latent_channels, device=image.device)

        code = self.encode(image)
        with frozen(self.coder.decoder), frozen(self.code_critic):
            error = F.l1_loss(self._pair(code, prior)[0], image)
            deceived = _deceived(self.code_critic(code))
        parts = {"reconstruction": error.detach(), "adversarial": deceived.detach()}
        yield "encoder", weight * error + deceived, parts

        code = code.detach()
        with frozen(self.critic):
            copy, made = self._pair(code, prior)
            error = F.l1_loss(copy, image)
            deceived = _deceived(self.critic(copy)) + _deceived(self.critic(made))
        parts = {"reconstruction": error.detach(), "adversarial": deceived.detach()}
        yield "generator", weight * error + deceived, parts

        real, fake = self.critic(image), self.critic(torch.cat([copy, made]).detach())
        yield "critic", cross_entropy_critic(real, fake), critic_parts(real, fake)

        real, fake = self.code_critic(prior), self.code_critic(code)
        yield "code_critic", cross_entropy_critic(real, fake), critic_parts(real, fake)

    def _pair(self, code: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Images of codes and of draws from the prior, made together: one batch for the norms."""
        copies, made = self.decode(torch.cat([code, prior])).chunk(2)
        return copies, made

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` and ``score`` ``(B, 1, *spatial)``."""
        return self.copy_and_score(image, self.critic, self.config.kappa, torch.abs)


def _deceived(verdict: Tensor) -> Tensor:
    """``E[-log s(d) + log(1 - s(d))]``, which is ``-E[d]``, Wasserstein's generator loss."""
    return wasserstein_generator(verdict, verdict)
