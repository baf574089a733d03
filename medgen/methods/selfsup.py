"""Self-supervised features: two views of one image should be near, and no two images the same.

Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning" (ICLR 2022). For the projected features ``z, z'`` of two random views of a batch

``loss = 25 |z - z'|^2 + 25 [v(z) + v(z')] + [c(z) + c(z')]``

where ``v`` is the hinge ``mean_j max(0, 1 - sd(z_j))``, which forbids that all images get one
vector, and ``c`` the sum of the squared covariances of different dimensions divided by their
number, which forbids that all dimensions say the same. No labels, no negative pairs, no second
network.

``features(image)`` are those *before* the projector, in arbitrary units. Metrics of synthetic
images use them, so they must notice what a generator gets wrong: the views differ in place, size,
turn and colour, but only a little in sharpness and noise, or the features would stop to see them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.networks.features import feature_network

SMALLEST = 32  # pixels; below that the last stage sees less than two by two places
EPSILON = 1e-4  # under the square root of a variance


class SelfSupConfig(Config):
    """Settings of the feature extractor."""

    spatial_dims: Literal[2] = Field(2, description="2: volumes are seen slice by slice")
    channels: Literal[3] = Field(3, description="3: grey images are repeated three times")
    view_size: int = Field(
        96, ge=SMALLEST, description="side of the square views in pixels, whatever the images' size"
    )
    widths: tuple[int, int, int, int] = Field(
        (32, 64, 128, 160), description="channels of the four stages of the residual network"
    )
    dimension: int = Field(64, ge=2, description="length of a feature vector")
    projector: int = Field(512, ge=2, description="width of the projector, which only training has")
    invariance: float = Field(25.0, ge=0, description="weight of the distance between two views")
    variance: float = Field(25.0, ge=0, description="weight of the spread of each dimension")
    covariance: float = Field(1.0, ge=0, description="weight of what dimensions have in common")
    smallest_crop: float = Field(
        0.3, gt=0, le=1, description="smallest part of the image's area that a view shows"
    )
    colour: float = Field(
        0.4, ge=0, lt=1, description="strength of changes of brightness, contrast and colour, 0..1"
    )
    blur: float = Field(0.3, ge=0, le=1, description="largest part of fine detail lost or added")
    noise: float = Field(0.03, ge=0, description="largest standard deviation of added noise")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay")


class SelfSup(nn.Module):
    """A residual network trained so that its features describe an image and not the view of it."""

    Config = SelfSupConfig
    input_slices = 1
    divisor = 1
    training_only = ("projector",)

    def __init__(self, config: SelfSupConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims, self.channels = config.spatial_dims, config.channels
        self.view_size, self.dimension = config.view_size, config.dimension
        self.network = feature_network(config.widths, config.channels, config.dimension)
        self.projector: nn.Module | None = _projector(config.dimension, config.projector)

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for network and projector."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"features": AdamW(self.parameters(), lr=rate, weight_decay=decay)}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The paper's loss for two views of every image ``(B, 3, X, Y)``, -1..1."""
        image = batch["image"]
        views = torch.cat([self.view(image), self.view(image)])
        loss, parts = self._loss(views)
        yield "features", loss, parts

    def features(self, image: Tensor) -> Tensor:
        """Feature vectors ``(B, dimension)`` of images ``(B, 3, X, Y)``, -1..1.

        Raises:
            InputError: Images are too small or not of three channels.
        """
        if image.ndim != 4 or image.shape[1] != self.channels or min(image.shape[2:]) < SMALLEST:
            msg = f"features need images (B, 3, X, Y) of at least {SMALLEST} pixels a side, "
            raise InputError(f"{msg}got {tuple(image.shape)}")
        vectors: Tensor = self.network(image)
        return vectors

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """How well a held-out image is found again among the others, from a mirrored copy.

        Returns:
            ``retrieval``: share of images whose nearest neighbour among the mirrored copies is
            their own, 0..1 (chance: 1 / B); ``spread``: mean standard deviation of the features;
            ``rank``: effective number of dimensions, the exponential of the entropy of the
            covariance's normalised eigenvalues (Roy and Vetterli 2007), 1 to ``dimension``.
        """
        image = batch["image"]
        vectors = self.features(image).float()
        mirrored = self.features(image.flip(2)).float()
        found = torch.cdist(vectors, mirrored).argmin(1)
        right = found == torch.arange(len(image), device=image.device)
        share = torch.linalg.eigvalsh(torch.cov(vectors.T)).clamp(min=1e-12)
        share = share / share.sum()
        return {
            "retrieval": float(right.float().mean()),
            "spread": float(vectors.std(0).mean()),
            "rank": float(torch.exp(-(share * share.log()).sum())),
        }

    def _loss(self, views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of both views of a batch, one after the other ``(2 B, 3, X, Y)``."""
        if self.projector is None:
            raise InputError("this feature extractor was packaged without what training needs")
        vectors = self.features(views)
        first, second = self.projector(vectors).float().chunk(2)
        with torch.autocast(views.device.type, enabled=False):
            invariance = F.mse_loss(first, second)
            variance = _spread_loss(first) + _spread_loss(second)
            covariance = _shared_loss(first) + _shared_loss(second)
        config = self.config
        loss = (
            config.invariance * invariance
            + config.variance * variance
            + config.covariance * covariance
        )
        parts = {"invariance": invariance, "variance": variance, "covariance": covariance}
        parts["spread"] = vectors.float().std(0).mean()
        return loss, {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def view(self, image: Tensor) -> Tensor:
        """A random view of each image, ``(B, 3, view_size, view_size)``, -1..1, drawn at once."""
        # In half precision, pixels would be moved by whole steps of their grid.
        with torch.autocast(image.device.type, enabled=False):
            image = _placed(image.float(), self.view_size, self.config.smallest_crop)
            image = _coloured(image, self.config.colour)
            image = _sharpened(image, self.config.blur)
            deviation = self.config.noise * _uniform(image, 0, 1)
            return (image + deviation * torch.randn_like(image)).clamp(-1, 1)


def _projector(inputs: int, width: int) -> nn.Module:
    """Three layers, as in the paper; its output is what the loss looks at."""
    layers: list[nn.Module] = []
    for number in (inputs, width):
        layers += [nn.Linear(number, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, width, bias=False))


def _spread_loss(vectors: Tensor) -> Tensor:
    """Hinge that keeps the standard deviation of each dimension at one (equation 1)."""
    return F.relu(1 - torch.sqrt(vectors.var(0) + EPSILON)).mean()


def _shared_loss(vectors: Tensor) -> Tensor:
    """Squared covariances of different dimensions, divided by their number (equation 4)."""
    centred = vectors - vectors.mean(0)
    covariance = centred.T @ centred / (len(vectors) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / vectors.shape[1]


def _uniform(image: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    """One random number per image (and channel) that broadcasts over the image."""
    shape = (len(image), channels, 1, 1)
    return torch.empty(shape, device=image.device).uniform_(low, high)


def _placed(image: Tensor, size: int, smallest: float) -> Tensor:
    """A turned, mirrored crop of each image, resampled in one step; the border is reflected."""
    count, device = len(image), image.device

    def draw(low: float, high: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(low, high)

    side = draw(smallest, 1).sqrt()
    stretch = torch.exp(draw(-0.1, 0.1))
    turn = torch.randint(0, 4, (count,), device=device) * (math.pi / 2) + draw(-0.35, 0.35)
    mirror = torch.randint(0, 2, (count,), device=device) * 2.0 - 1
    wide, high = side * stretch, side / stretch
    room_x, room_y = (1 - wide).clamp(min=0), (1 - high).clamp(min=0)
    rows = [
        torch.stack([wide * turn.cos() * mirror, -high * turn.sin(), room_x * draw(-1, 1)], 1),
        torch.stack([wide * turn.sin() * mirror, high * turn.cos(), room_y * draw(-1, 1)], 1),
    ]
    grid = F.affine_grid(
        torch.stack(rows, 1), [count, image.shape[1], size, size], align_corners=False
    )
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def _coloured(image: Tensor, strength: float) -> Tensor:
    """Other brightness, contrast, saturation and balance of the channels."""
    mean = image.mean((1, 2, 3), keepdim=True)
    image = (image - mean) * torch.exp(_uniform(image, -strength, strength)) + mean
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * _uniform(image, 1 - strength, 1 + strength)
    image = image + _uniform(image, -strength / 2, strength / 2)
    return image + _uniform(image, -strength / 4, strength / 4, channels=image.shape[1])


def _sharpened(image: Tensor, most: float) -> Tensor:
    """A part of the fine detail taken away (or added): a blend with a blurred copy."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=image.device) / 16
    channels = image.shape[1]
    kernel = torch.outer(line, line).expand(channels, 1, 5, 5)
    padded = F.pad(image, (2, 2, 2, 2), mode="reflect")
    blurred = F.conv2d(padded, kernel, groups=channels)
    return torch.lerp(image, blurred, _uniform(image, -most, most))
