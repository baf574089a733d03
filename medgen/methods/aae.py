"""AAE: an autoencoder whose codes a critic cannot tell from the prior.

Makhzani et al., "Adversarial Autoencoders" (2016). Every batch has three phases: encoder and
decoder learn to copy the image, ``|x - x'|^2`` with ``x' = Dec(z)``, ``z = Enc(x)``; the critic
learns to tell codes z from draws of the prior N(0, I); the encoder learns to deceive it. Where a
VAE weighs a divergence, the critic compares whole distributions, and the encoder adds no noise.

``loss`` is the paper's (non-saturating) or Wasserstein's with gradient penalty (Gulrajani et al.
2017), which Chen and Konukoglu, "Unsupervised Detection of Lesions in Brain MRI using constrained
adversarial auto-encoders" (2018), use. Their constraint is ``constraint_weight``: the code of the
copy must be the code of the image, ``|z - Enc(x')|^2``, so that an image with a lesion and its
healthy copy lie close to each other. The variant ``constrained_aae`` is theirs. Errors are means
over voxels and latent variables.

With a spatial latent space the critic judges the code of every place by itself.

``restored`` has the image's unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Adam, Optimizer

from medgen.losses import ADVERSARIAL, critic_parts, squared_error
from medgen.methods._adversarial import AdversarialCoder, Parts, wasserstein_step
from medgen.methods._coding import CodedConfig
from medgen.networks.critics import CodeCritic, codes
from medgen.networks.layers import frozen


class AAEConfig(CodedConfig):
    """Settings of the adversarial autoencoder."""

    loss: Literal["non_saturating", "wasserstein"] = Field(
        "non_saturating", description="of the critic; wasserstein: with gradient penalty"
    )
    constraint_weight: float = Field(
        0.0, ge=0, description="weight of the distance between the codes of image and copy"
    )
    critic_width: int = Field(512, ge=1, description="units of the critic's two hidden layers")
    critic_steps: int = Field(1, ge=1, description="critic steps for each step of the encoder")
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate of copying")
    adversarial_rate: float = Field(
        1e-4, gt=0, description="Adam learning rate of the critic, and of deceiving it"
    )
    betas: tuple[float, float] = Field((0.5, 0.9), description="Adam's betas of these two")


class AAE(AdversarialCoder):
    """Copies images through codes that are distributed like a standard normal.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    Config = AAEConfig
    training_only = ("critic",)

    def __init__(self, config: AAEConfig) -> None:
        super().__init__(config)
        self.config = config
        offset = config.loss != "wasserstein"
        self.critic = CodeCritic(config.latent_channels, config.critic_width, offset=offset)

    def optimizers(self) -> dict[str, Optimizer]:
        """One for each phase; the encoder is in the first and the last."""
        config = self.config
        rate, betas = config.adversarial_rate, config.betas
        return {
            "autoencoder": Adam(self.coder.parameters(), config.learning_rate),
            "critic": Adam(self.critic.parameters(), rate, betas),
            "encoder": Adam(self.coder.encoder.parameters(), rate, betas),
        }

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Parts]]:
        """Copying, the critic on codes, and deceiving it."""
        config = self.config
        image, _ = self.coder.fitted(batch["healthy"])
        code = self.encode(image)
        copy = self.decode(code)
        loss = error = squared_error(copy, image, reduction="mean")
        parts = {"reconstruction": error.detach()}
        if config.constraint_weight:
            distance = squared_error(self.encode(copy), code, reduction="mean")
            loss = error + config.constraint_weight * distance
            parts["constraint"] = distance.detach()
        yield "autoencoder", loss, parts

        with torch.no_grad():
            fake = codes(self.encode(image))
        for _ in range(config.critic_steps):
            yield "critic", *self._critic_step(torch.randn_like(fake), fake)

        with frozen(self.critic):
            verdict = self.critic(codes(self.encode(image)))
        deceived = ADVERSARIAL[config.loss][1](verdict, verdict.detach())
        yield "encoder", deceived, {"fake_score": verdict.detach().mean()}

    def _critic_step(self, prior: Tensor, code: Tensor) -> tuple[Tensor, Parts]:
        """The critic's loss: draws of the prior are real, codes are not."""
        if self.config.loss == "wasserstein":
            return wasserstein_step(self.critic, prior, code)
        real, fake = self.critic(prior), self.critic(code)
        return ADVERSARIAL[self.config.loss][0](real, fake), critic_parts(real, fake)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit."""
        fitted, inside = self.coder.fitted(image)
        return {"restored": self.decode(self.encode(fitted))[inside]}
