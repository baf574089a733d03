"""VAE: a variational autoencoder that has only seen healthy images cannot draw a lesion.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2014): the evidence lower bound with a
diagonal Gaussian posterior and a standard normal prior,
``1/2 |x - x'|^2 + beta * KL(q(z|x) || N(0, I))``, minimised with the reparametrisation
``z = mean + exp(logvar / 2) * noise``. Used for brain lesions as in Baur et al., "Autoencoders for
Unsupervised Anomaly Segmentation in Brain MR Images" (Med Image Anal 69:101952, 2021): strided
convolutions, and a latent space that is one vector (``dense``) or a small image (``spatial``).

``restored`` is decoded from the posterior's mean, never from a sample, and has the image's unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.losses import kl_to_standard_normal, squared_error
from medgen.networks.autoencoding import (
    LOGVAR_LIMITS,
    bottleneck,
    decoder,
    dense_size,
    encoder,
    fit_to,
)


class VAEConfig(Config):
    """Settings of the variational autoencoder."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    features: tuple[int, ...] = Field(
        (32, 64, 128, 128), min_length=1, description="channels after each halving of the size"
    )
    latent: Literal["dense", "spatial"] = Field(
        "spatial", description="one vector for the image, or one for every place of a coarse grid"
    )
    latent_channels: int = Field(128, ge=1, description="length of these vectors")
    image_size: tuple[int, ...] | None = Field(
        None, description="largest image of a dense latent space; smaller ones are padded with 0"
    )
    beta: float = Field(0.001, ge=0, description="weight of the divergence from the prior")
    reduction: Literal["sum", "mean"] = Field(
        "mean",
        description="sum: squared error and divergence are added up, so that beta 1 is the paper's "
        "bound; mean: the error is averaged over voxels, the divergence over latent variables",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate")


class VAE(nn.Module):
    """Reconstructs images through a Gaussian latent space.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    Config = VAEConfig
    input_slices = 1

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.factor = 2 ** len(config.features)
        self.image_size: tuple[int, ...] | None = None
        if config.latent == "dense":
            self.image_size = dense_size(config.image_size, dims, self.factor)
        # A dense network pads by itself, up to its one size.
        self.divisor = self.factor if self.image_size is None else 1
        features, latent = config.features, config.latent_channels
        self.encoder = encoder(dims, config.channels, features)
        self.to_posterior, self.from_latent = bottleneck(
            dims, features[-1], latent, 2 * latent, self.image_size, self.factor
        )
        self.decoder = decoder(dims, features, config.channels)

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for encoder and decoder."""
        return {"autoencoder": Adam(self.parameters(), lr=self.config.learning_rate)}

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the variance, each ``(B, latent_channels[, *spatial / factor])``."""
        mean, logvar = self.to_posterior(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_LIMITS)

    def decode(self, latent: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` of latent vectors as :meth:`encode` gives them."""
        images: Tensor = self.decoder(self.from_latent(latent))
        return images

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The negative evidence lower bound of the healthy images."""
        image, _ = fit_to(batch["healthy"], self.image_size, self.factor)
        mean, logvar = self.encode(image)
        decoded = self.decode(mean + torch.exp(logvar / 2) * torch.randn_like(mean))
        reduction = self.config.reduction
        error = squared_error(decoded, image, reduction=reduction) / 2
        divergence = kl_to_standard_normal(mean, logvar, reduction=reduction)
        loss = error + self.config.beta * divergence
        parts = {"reconstruction": error.detach(), "divergence": divergence.detach()}
        yield "autoencoder", loss, parts

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit, decoded from the mean."""
        fitted, inside = fit_to(image, self.image_size, self.factor)
        mean, _ = self.encode(fitted)
        return {"restored": self.decode(mean)[(slice(None), slice(None), *inside)]}
