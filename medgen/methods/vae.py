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

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Literal

import torch
from monai.networks.blocks import Convolution
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import kl_to_standard_normal, squared_error
from medgen.methods._sizes import require_multiples

# Channels between the last convolution and a dense latent vector (Baur et al. use 16).
NECK = 16
# exp() of these is still finite and positive in float32.
LOGVAR_LIMITS = (-30.0, 20.0)


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
        self.spatial_dims = config.spatial_dims
        self.factor = 2 ** len(config.features)
        self.image_size = _dense_size(config, self.factor) if config.latent == "dense" else None
        # A dense network pads by itself, up to its one size.
        self.divisor = self.factor if self.image_size is None else 1
        self.encoder = _encoder(config)
        self.to_posterior, self.from_latent = _bottleneck(config, self.image_size, self.factor)
        self.decoder = _decoder(config)

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
        image, _ = self._fitted(batch["healthy"])
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
        fitted, inside = self._fitted(image)
        mean, _ = self.encode(fitted)
        return {"restored": self.decode(mean)[(slice(None), slice(None), *inside)]}

    def _fitted(self, image: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
        """The image at a size the network can take, and where in it the given image lies."""
        sizes = tuple(image.shape[2:])
        if self.image_size is None:
            require_multiples(sizes, self.factor)
            return image, tuple(slice(0, size) for size in sizes)
        if any(size > largest for size, largest in zip(sizes, self.image_size, strict=True)):
            msg = f"this network takes images up to {self.image_size} voxels, got {sizes}"
            raise InputError(msg, "Crop the image to the brain, or train with a larger image_size.")
        before = [
            (largest - size) // 2 for size, largest in zip(sizes, self.image_size, strict=True)
        ]
        padding: list[int] = []
        for first, size, largest in zip(before, sizes, self.image_size, strict=True):
            padding = [first, largest - size - first, *padding]  # torch counts from the last axis
        inside = tuple(slice(b, b + size) for b, size in zip(before, sizes, strict=True))
        return F.pad(image, padding), inside


def _dense_size(config: VAEConfig, factor: int) -> tuple[int, ...]:
    """The image size of a dense latent space, checked."""
    size = config.image_size
    if size is None or len(size) != config.spatial_dims:
        msg = (
            f"a dense latent space needs image_size with {config.spatial_dims} numbers, got {size}"
        )
        raise InputError(msg, "Or choose latent: spatial, which takes images of any size.")
    require_multiples(size, factor)
    return size


def _block(config: VAEConfig, inputs: int, outputs: int, **settings: Any) -> nn.Module:
    block: nn.Module = Convolution(
        config.spatial_dims,
        inputs,
        outputs,
        kernel_size=3,
        norm="batch",
        act="leakyrelu",
        **settings,
    )
    return block


def _encoder(config: VAEConfig) -> nn.Module:
    """Halves the size once for every entry of ``features``."""
    widths = (config.channels, *config.features)
    return nn.Sequential(*[_block(config, a, b, strides=2) for a, b in pairwise(widths)])


def _decoder(config: VAEConfig) -> nn.Module:
    """Doubles the size as often; enlarging before convolving leaves no checkerboard."""
    widths = tuple(reversed(config.features))
    widths = (*widths, widths[-1])
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Upsample(scale_factor=2), _block(config, a, b)]
    last = Convolution(
        config.spatial_dims, widths[-1], config.channels, kernel_size=3, conv_only=True
    )
    return nn.Sequential(*layers, last)


def _bottleneck(
    config: VAEConfig, image_size: Sequence[int] | None, factor: int
) -> tuple[nn.Module, nn.Module]:
    """From features to mean and logvar side by side, and from a latent to features."""
    width, latent = config.features[-1], config.latent_channels

    def pointwise(inputs: int, outputs: int) -> nn.Module:
        conv: nn.Module = Convolution(
            config.spatial_dims, inputs, outputs, kernel_size=1, conv_only=True
        )
        return conv

    if image_size is None:
        return pointwise(width, 2 * latent), pointwise(latent, width)
    small = [size // factor for size in image_size]
    numbers = NECK * prod(small)
    down = nn.Sequential(pointwise(width, NECK), nn.Flatten(), nn.Linear(numbers, 2 * latent))
    up = nn.Sequential(
        nn.Linear(latent, numbers), nn.Unflatten(1, (NECK, *small)), pointwise(NECK, width)
    )
    return down, up
