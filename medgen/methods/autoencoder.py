"""Autoencoder: what a network cannot draw after it has squeezed it through few numbers.

``z = Enc(x)``, ``x' = Dec(z)``, trained on healthy images by the squared error ``|x - x'|^2``, a
mean over voxels. Three architectures:

- ``conv``: that of Baur et al. (Med Image Anal 69:101952, 2021) with a dense or a spatial code;
- ``mlp``: fully connected and symmetric; with two latent numbers, a map of all images;
- ``linear``: ``z = W1 (x - m)``, ``x' = m + W2 z`` with the mean m of the images. It learns the
  subspace of the first principal components (Baldi and Hornik, 1989), in any basis: they are the
  left singular vectors of W2 times the root of the covariance of z. ``decay``, the weight of
  ``(|W1|^2 + |W2|^2) / voxels``, makes them those of W2 alone (Kunin et al., "Loss Landscapes of
  Regularized Linear Autoencoders", 2019; Plaut, "From Principal Subspaces to Principal Components
  with Linear Autoencoders", 2018), and drops components whose variance is below it. If it grows
  from one latent number to the next (``decay_growth``), they are the columns of W2 themselves (Bao
  et al., "Regularized Linear Autoencoders Recover the Principal Components, Eventually", 2020).

Variants of the literature, each a setting:

- ``context_ae``: x' is drawn from an image in which boxes were erased (Zimmerer et al. 2018);
- ``constrained_ae``: plus ``constraint * |z - Enc(x')|^2``, so that an image and its healthy copy
  have one code (Chen and Konukoglu, 2018);
- ``bayesian_ae``: channels are dropped before and after the code; ``restored`` is the mean of
  several copies (Pawlowski et al., "Unsupervised Lesion Detection in Brain CT using Bayesian
  Convolutional Autoencoders", 2018), here with masks that are drawn once and kept with the weights;
- ``perceptual_ae``: plus ``perceptual * |f(x) - f(x')| / |f(x)|`` with features f of a frozen
  network (Shvetsova et al. 2021; see ``_perception.py``). That distance at every place is the
  ``score``, from 0; 1 is as large as the features themselves.

``restored`` has the image's unit; nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.errors import InputError
from medgen.losses import squared_error
from medgen.methods._coding import CodedConfig
from medgen.methods._erasing import erase_boxes
from medgen.methods._perception import Perception
from medgen.networks.autoencoding import bottleneck, decoder, dense_size, encoder, fit_to


class AutoencoderConfig(CodedConfig):
    """Settings of the autoencoder."""

    architecture: Literal["conv", "mlp", "linear"] = Field(
        "conv",
        description="convolutional, fully connected or linear; the last two have dense codes and "
        "need an image_size",
    )
    hidden: tuple[int, ...] = Field(
        (512, 128), min_length=1, description="units of the mlp's layers before the code"
    )
    corruption: Literal["none", "context"] = Field(
        "none", description="context: boxes are erased from the images that it copies"
    )
    constraint: float = Field(
        0.0, ge=0, description="weight of the distance between the codes of image and copy"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="part of the channels dropped before and after the code"
    )
    passes: int = Field(
        20, ge=1, description="copies with different channels dropped that are averaged"
    )
    perceptual: float = Field(
        0.0, ge=0, description="weight of the distance of features, which then also is the score"
    )
    extractor: str = Field(
        "medgen-features",
        description="shipped package, or folder of a package or training run of selfsup, whose "
        "network is copied when training begins, if features count",
    )
    decay: float = Field(0.0, ge=0, description="decay of linear weights, as a variance")
    decay_growth: float = Field(
        0.0, ge=0, description="by which part of it the decay grows from one number to the next"
    )
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate")


class Autoencoder(nn.Module):
    """Copies images through a code.

    Raises:
        InputError: A dense code without a fitting ``image_size``, or a setting of another
            architecture.
    """

    Config = AutoencoderConfig
    input_slices = 1
    mean: Tensor
    count: Tensor
    masks: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        _require_consistent(config)
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        conv = config.architecture == "conv"
        self.factor = 2 ** len(config.features) if conv else 1
        self.image_size: tuple[int, ...] | None = None
        if not conv or config.latent == "dense":
            self.image_size = dense_size(config.image_size, dims, self.factor)
        # A dense network pads by itself, up to its one size.
        self.divisor = self.factor if self.image_size is None else 1
        latent, width = config.latent_channels, config.features[-1]
        if conv:
            self.encoder = encoder(dims, config.channels, config.features)
            self.to_latent, self.from_latent = bottleneck(
                dims, width, latent, latent, self.image_size, self.factor
            )
            self.decoder = decoder(dims, config.features, config.channels)
        else:
            shape = (config.channels, *(self.image_size or ()))
            hidden = config.hidden if config.architecture == "mlp" else ()
            bias = config.architecture == "mlp"
            width = (prod(shape), *hidden)[-1]
            self.encoder = nn.Sequential(nn.Flatten(), *_layers((prod(shape), *hidden)))
            self.to_latent = nn.Linear(width, latent, bias=bias)
            self.from_latent = nn.Linear(latent, width, bias=bias)
            self.decoder = nn.Sequential(*_mirrored(hidden, prod(shape)), nn.Unflatten(1, shape))
        if config.architecture == "linear":
            self.register_buffer("mean", torch.zeros(config.channels, *(self.image_size or ())))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        if config.dropout:
            kept = torch.rand(config.passes, 2, width) >= config.dropout
            self.register_buffer("masks", kept.float() / (1 - config.dropout))
        self.perception = Perception() if config.perceptual else None

    def begin(self) -> None:
        """Copy the extractor's weights: training calls this once, before its first step."""
        if self.perception is not None:
            self.perception.copy_weights(self.config.extractor)

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for encoder and decoder."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return {"autoencoder": Adam(weights, lr=self.config.learning_rate)}

    def encode(self, image: Tensor) -> Tensor:
        """Codes ``(B, latent_channels[, *spatial / factor])`` of fitted images."""
        code: Tensor = self.to_latent(self.encoder(self._centred(image)))
        return code

    def decode(self, latent: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` of codes."""
        image: Tensor = self.decoder(self.from_latent(latent))
        return image + self.mean if self.config.architecture == "linear" else image

    def latent(self, image: Tensor) -> Tensor:
        """Codes of images of any size, flattened ``(B, K)``."""
        return self.encode(self._fitted(image)[0]).flatten(1)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The squared error of copies of the healthy images, and what the settings add."""
        config = self.config
        image, _ = self._fitted(batch["healthy"])
        if config.architecture == "linear":
            self._take_into_mean(image)
        given = erase_boxes(image) if config.corruption == "context" else image
        copy, code = self._copy(given)
        loss = error = squared_error(copy, image, reduction="mean")
        parts = {"reconstruction": error.detach()}
        if config.constraint:
            distance = squared_error(self.encode(copy), code, reduction="mean")
            loss = loss + config.constraint * distance
            parts["constraint"] = distance.detach()
        if self.perception is not None:
            distance = self.perception.distance(copy, image)
            loss = loss + config.perceptual * distance
            parts["features"] = distance.detach()
        if config.decay:
            loss = loss + self._decay() / image[0].numel()
        yield "autoencoder", loss, parts

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit and, of features, ``score``."""
        fitted, inside = self._fitted(image)
        if self.config.dropout:
            features = self.encoder(fitted)
            copies = [self._dropped(features, masks) for masks in self.masks]
            restored = torch.stack(copies).mean(0)
        else:
            restored = self.decode(self.encode(fitted))
        outputs = {"restored": restored[inside]}
        if self.perception is not None:
            outputs["score"] = self.perception.distance_map(outputs["restored"], image)
        return outputs

    def _copy(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Copies as training makes them, and their codes."""
        rate = self.config.dropout
        if not rate:
            code = self.encode(image)
            return self.decode(code), code
        features = self.encoder(image)
        code = self.to_latent(_drop(features, rate))
        copy: Tensor = self.decoder(_drop(self.from_latent(code), rate))
        return copy, code

    def _dropped(self, features: Tensor, masks: Tensor) -> Tensor:
        """Copies of images with these features, through masks ``(2, width)``."""
        before, after = (mask.view(1, -1, *(1,) * (features.ndim - 2)) for mask in masks)
        drawn = self.from_latent(self.to_latent(features * before))
        copy: Tensor = self.decoder(drawn * after)
        return copy

    def _fitted(self, image: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
        return fit_to(image, self.image_size, self.factor)

    def _centred(self, image: Tensor) -> Tensor:
        return image - self.mean if self.config.architecture == "linear" else image

    @torch.no_grad()
    def _take_into_mean(self, image: Tensor) -> None:
        """The mean is that of all images seen so far."""
        self.count += len(image)
        self.mean += (image.mean(0) - self.mean) * len(image) / self.count

    def _decay(self) -> Tensor:
        """Squared weights of each latent number, times its decay, added up."""
        down: Any = self.to_latent.weight
        up: Any = self.from_latent.weight
        squares = down.square().sum(1) + up.square().sum(0)
        number = torch.arange(len(squares), device=squares.device)
        return self.config.decay * (squares * (1 + self.config.decay_growth * number)).sum()


def _require_consistent(config: AutoencoderConfig) -> None:
    """Refuse settings that an architecture would ignore.

    Raises:
        InputError: Decay of a network that is not linear, or dropout in one that is.
    """
    linear = config.architecture == "linear"
    if config.decay and not linear:
        raise InputError("decay is for architecture: linear", "Set decay to 0.")
    if config.dropout and linear:
        raise InputError("dropout is for architecture: conv or mlp", "Set dropout to 0.")


def _drop(features: Tensor, rate: float) -> Tensor:
    """Random channels set to 0, others enlarged, ``(B, width[, *spatial])``."""
    kept = torch.rand(features.shape[:2], device=features.device) >= rate
    return features * (kept / (1 - rate)).view(*kept.shape, *(1,) * (features.ndim - 2))


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers, each with an activation after it."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
    return layers


def _mirrored(hidden: Sequence[int], outputs: int) -> list[nn.Module]:
    """The encoder's layers backwards; the last has no activation."""
    if not hidden:
        return []
    backwards = tuple(reversed(hidden))
    return [nn.LeakyReLU(0.2), *_layers(backwards), nn.Linear(backwards[-1], outputs)]
