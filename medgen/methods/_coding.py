"""What variational autoencoders share: settings, networks, and restoration by gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from medgen.config import Config
from medgen.methods._restoration_by_gradient import Energy, gradient_of, restore
from medgen.networks.autoencoding import bottleneck, decoder, dense_size, encoder, fit_to


class CodedConfig(Config):
    """Settings of an encoder and a decoder with a dense or a spatial latent space."""

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


class VariationalConfig(CodedConfig):
    """Further settings of an autoencoder that maximises an evidence lower bound."""

    beta: float = Field(0.001, ge=0, description="weight of the divergence from the prior")
    reduction: Literal["sum", "mean"] = Field(
        "mean",
        description="sum: squared error and divergence are added up, so that beta 1 is the paper's "
        "bound; mean: the error is averaged over voxels, the divergence over latent variables",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate")
    restoration_steps: int = Field(
        0,
        ge=0,
        description="steps of gradient descent from the image to a more probable one near it; "
        "0: restored is decoded from the code",
    )
    restoration_rate: float = Field(
        0.1, gt=0, description="length of these steps; a network that overfits needs shorter ones"
    )
    restoration_smoothness: float = Field(
        0.02,
        ge=0,
        description="weight of the total variation of what they change, in the image's unit",
    )


class Coded(nn.Module):
    """Encoder, latent space and decoder, and what one can do with a bound of the likelihood.

    Args:
        config: Its settings.
        numbers: How many the encoder gives for one latent vector.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    input_slices = 1
    config: VariationalConfig

    def __init__(self, config: VariationalConfig, numbers: int) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.factor = 2 ** len(config.features)
        self.image_size: tuple[int, ...] | None = None
        if config.latent == "dense":
            self.image_size = dense_size(config.image_size, dims, self.factor)
        # A dense network pads by itself, up to its one size.
        self.divisor = self.factor if self.image_size is None else 1
        self.encoder = encoder(dims, config.channels, config.features)
        self.to_posterior, self.from_latent = bottleneck(
            dims, config.features[-1], config.latent_channels, numbers, self.image_size, self.factor
        )
        self.decoder = decoder(dims, config.features, config.channels)

    def decode(self, latent: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` of latent vectors ``(B, latent_channels[, *grid])``."""
        images: Tensor = self.decoder(self.from_latent(latent))
        return images

    def fitted(self, image: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
        """The image at a size the network can take, and the index of the given image in it."""
        return fit_to(image, self.image_size, self.factor)

    def weighed(self, image: Tensor, bound: Energy) -> Energy:
        """A bound whose gradient at a voxel has the size of the residual there.

        Args:
            image: Fitted, ``(B, C, *spatial)``.
            bound: The mean over a batch of the negative bound of each image, which depends on no
                other image and has the configuration's ``reduction``.
        """
        each = image[0].numel() if self.config.reduction == "mean" else 1
        return lambda point: bound(point) * (len(image) * each)

    def restore(self, image: Tensor, bound: Energy) -> Tensor:
        """The fitted image moved to where the bound is higher, by the settings' steps."""
        config = self.config
        return restore(
            image,
            self.weighed(image, bound),
            steps=config.restoration_steps,
            rate=config.restoration_rate,
            smoothness=config.restoration_smoothness,
        )

    def slope(self, image: Tensor, bound: Energy) -> Tensor:
        """Gradient of the negative bound at the fitted image, ``(B, C, *spatial)``."""
        return gradient_of(self.weighed(image, bound), image)
