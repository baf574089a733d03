"""What the autoencoders with critics share: settings, networks, a critic's step and a distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.config import Config
from medgen.losses import critic_parts, wasserstein_critic, wgan_gp
from medgen.methods._coding import CodedConfig
from medgen.networks.autoencoding import bottleneck, decoder, dense_size, encoder, fit_to
from medgen.networks.critics import ImageCritic

Parts = dict[str, Tensor]


class DenseConfig(Config):
    """Settings of an encoder and a decoder with one latent vector for an image."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    image_size: tuple[int, ...] = Field(
        (128, 128), description="largest image; smaller ones are padded with 0"
    )
    features: tuple[int, ...] = Field(
        (32, 64, 128, 128), min_length=1, description="channels after each halving of the size"
    )
    latent_channels: int = Field(128, ge=1, description="length of the latent vector")


class Coder(nn.Module):
    """Encoder and decoder of Baur et al. (2021), and the size of image that they take.

    Args:
        config: Its settings.
        moments: Numbers that the encoder gives for each latent variable: 2 for mean and logvar.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    def __init__(self, config: DenseConfig | CodedConfig, *, moments: int = 1) -> None:
        super().__init__()
        dims, features, latent = config.spatial_dims, config.features, config.latent_channels
        self.factor = 2 ** len(features)
        dense = isinstance(config, DenseConfig) or config.latent == "dense"
        self.image_size = dense_size(config.image_size, dims, self.factor) if dense else None
        # A dense network pads by itself, up to its one size.
        self.divisor = 1 if dense else self.factor
        down, up = bottleneck(
            dims, features[-1], latent, moments * latent, self.image_size, self.factor
        )
        self.encoder = nn.Sequential(encoder(dims, config.channels, features), down)
        self.decoder = nn.Sequential(up, decoder(dims, features, config.channels))

    def encode(self, image: Tensor) -> Tensor:
        """``(B, moments * latent_channels[, *spatial / factor])`` of fitted images."""
        code: Tensor = self.encoder(image)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` of codes ``(B, latent_channels[, *spatial / factor])``."""
        image: Tensor = self.decoder(code)
        return image

    def fitted(self, image: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
        """The image at a size the networks can take, and the index of the given image in it.

        Raises:
            InputError: It is too large, or its size is no multiple of ``divisor``.
        """
        return fit_to(image, self.image_size, self.factor)


class AdversarialCoder(nn.Module):
    """What every method with a coder and a critic has in common.

    Args:
        config: Its settings.
        moments: Numbers that the encoder gives for each latent variable.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    input_slices = 1

    def __init__(self, config: DenseConfig | CodedConfig, *, moments: int = 1) -> None:
        super().__init__()
        self.spatial_dims = config.spatial_dims
        self.coder = Coder(config, moments=moments)
        self.divisor = self.coder.divisor

    def encode(self, image: Tensor) -> Any:
        """Codes ``(B, latent_channels[, *spatial / factor])`` of fitted images."""
        return self.coder.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` of codes."""
        return self.coder.decode(latent)

    def latent(self, image: Tensor) -> Tensor:
        """Codes of images of any size, flattened ``(B, K)``."""
        code: Tensor = self.encode(self.coder.fitted(image)[0])
        return code.flatten(1)

    def copy_and_score(
        self, image: Tensor, critic: ImageCritic, kappa: float, measure: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` and ``score`` ``(B, 1, *spatial)``.

        Args:
            image: Of any size.
            critic: Whose features of image and copy are compared.
            kappa: Weight of their distance.
            measure: Of a difference: absolute value or square.
        """
        fitted, inside = self.coder.fitted(image)
        copy = self.decode(self.encode(fitted))
        seen = (critic.features(fitted), critic.features(copy))
        score = distance_map(fitted, copy, seen, kappa, measure)
        return {"restored": copy[inside], "score": score[inside]}


def wasserstein_step(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
) -> tuple[Tensor, Parts]:
    """A critic's loss ``E D(fake) - E D(real)`` with gradient penalty (10), and what to log."""
    of_real, of_fake = critic(real), critic(fake)
    penalty = wgan_gp(critic, real, fake)
    parts = critic_parts(of_real, of_fake, boundary=None)
    return wasserstein_critic(of_real, of_fake) + penalty, {**parts, "penalty": penalty.detach()}


def distance_map(
    image: Tensor,
    copy: Tensor,
    seen: tuple[Tensor, Tensor],
    kappa: float,
    measure: Callable[[Tensor], Tensor],
) -> Tensor:
    """How far a copy is from its image, in voxels and in what a critic sees of both.

    Args:
        image: ``(B, C, *spatial)``.
        copy: Same shape.
        seen: The critic's features of image and copy, each ``(B, F, *coarser)``.
        kappa: Weight of the features' distance.
        measure: Of a difference: absolute value or square.

    Returns:
        ``(B, 1, *spatial)``: the mean over channels, plus kappa times the mean over features,
        enlarged linearly.
    """
    voxels = measure(image - copy).mean(1, keepdim=True)
    places = measure(seen[0] - seen[1]).mean(1, keepdim=True)
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    return voxels + kappa * F.interpolate(places, voxels.shape[2:], mode=mode)
