"""DnCNN, and other networks that learn to remove noise from pairs of noisy and clean images.

Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising"
(2017): convolutions with batch normalisation predict the noise, which is taken from the image. One
network trained over a range of noise levels needs not be told the level (their DnCNN-B); the range
is that of the training data. ``architecture``:

- ``dncnn``: the paper's plain stack at one resolution.
- ``unet``: a U-Net (Ronneberger et al. 2015) predicts the noise. The name ``residual_unet``.
- ``autoencoder``: the image has to pass through a narrow middle, without skip connections, and
  comes out clean (Vincent et al. 2008; Gondara 2016). It predicts the image itself. The name
  ``denoising_ae``.

``fold`` puts blocks of voxels into channels before the first layer, as FFDNet does (Zhang et al.
2018), which sees further and is several times faster. The loss is the mean absolute error, or the
paper's squared one.

``output`` has the image's unit. ``spread`` is the scale of a Laplace distribution of its errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medgen.config import Config
from medgen.losses import mean_inside
from medgen.methods._restoring import (
    Restored,
    middle_slice,
    require_slices,
    restored,
    start_near,
)
from medgen.networks.folding import fold, unfold
from medgen.networks.layers import BATCH_NORM, conv
from medgen.networks.sizes import require_multiples


class DnCNNConfig(Config):
    """Settings of the denoising network."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    channels: int = Field(1, ge=1, description="image channels")
    architecture: Literal["dncnn", "unet", "autoencoder"] = Field(
        "dncnn", description="plain stack, U-Net, or autoencoder without skip connections"
    )
    fold: int = Field(
        1, ge=1, description="voxels per axis folded into channels before the first layer"
    )
    depth: int = Field(17, ge=3, description="convolutions of the plain stack")
    width: int = Field(64, ge=1, description="channels of the plain stack")
    features: tuple[int, int, int, int, int] = Field(
        (16, 32, 64, 128, 160), description="channels at the five resolutions of the other two"
    )
    loss: Literal["l1", "l2"] = Field("l1", description="absolute or squared error")
    spread: bool = Field(True, description="also predict how far the result may be off")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay")


class DnCNN(nn.Module):
    """Predicts the clean image from a noisy one.

    Raises:
        InputError: ``input_slices`` is even, or more than one in 3-D.
    """

    Config = DnCNNConfig
    training_only: tuple[str, ...] = ()

    def __init__(self, config: DnCNNConfig) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.input_slices = config.input_slices
        self.divisor = config.fold * (1 if config.architecture == "dncnn" else 16)
        self.channels = self.out_channels = config.channels
        folded = config.fold**dims
        inputs = config.channels * config.input_slices * folded
        outputs = config.channels * (2 if config.spread else 1) * folded
        last: nn.Module
        if config.architecture == "unet":
            self.network: nn.Module = BasicUNet(
                spatial_dims=dims,
                in_channels=inputs,
                out_channels=outputs,
                features=(*config.features, config.features[0]),
                norm="batch",
            )
            last = self.network.final_conv
        elif config.architecture == "autoencoder":
            self.network = _autoencoder(dims, inputs, outputs, config.features)
            last = self.network[-1]
        else:
            self.network = _stack(dims, inputs, outputs, config.width, config.depth)
            last = self.network[-1]
        gain = 1.0 if config.architecture == "autoencoder" else 0.1
        start_near(last, config.channels * folded, gain=gain)
        # On CPUs 2-D convolutions run about 1.5 times faster in this layout.
        self.layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for the one network."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"network": AdamW(self.network.parameters(), lr=rate, weight_decay=decay)}

    def forward(self, image: Tensor) -> Restored:
        """Noisy image ``(B, slices * C, *s)`` to the clean one ``(B, C, *s)``."""
        require_multiples(image.shape[2:], self.divisor)
        folded = fold(image, self.config.fold).contiguous(memory_format=self.layout)
        raw = unfold(self.network(folded), self.config.fold)
        whole = self.config.architecture == "autoencoder"
        return restored(raw, 0.0 if whole else middle_slice(image, self.channels), self.channels)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Distance from the clean image inside the mask."""
        result: Restored = self(batch["image"])
        error = result.output - batch["target"]
        size = error.abs() if self.config.loss == "l1" else error.square()
        distance = mean_inside(size, batch["mask"])
        loss = distance + result.spread_loss(batch["target"], batch["mask"])
        yield "network", loss, {self.config.loss: distance.detach()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output`` and, unless switched off, ``spread``, each ``(B, C, *spatial)``."""
        result: Restored = self(image)
        return result.outputs()


def _block(dims: int, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Convolution, batch normalisation, ReLU."""
    layer = conv(dims, inputs, outputs, stride=stride, bias=False)
    return [layer, BATCH_NORM[dims](outputs), nn.ReLU()]


def _stack(dims: int, inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """The paper's network; its first layer has no normalisation."""
    middle = [layer for _ in range(depth - 2) for layer in _block(dims, width, width)]
    first = [conv(dims, inputs, width), nn.ReLU()]
    return nn.Sequential(*first, *middle, conv(dims, width, outputs))


def _autoencoder(dims: int, inputs: int, outputs: int, features: tuple[int, ...]) -> nn.Sequential:
    """Four halvings down to the narrow middle, and four doublings back."""
    layers = _block(dims, inputs, features[0])
    for a, b in itertools.pairwise(features):
        layers += _block(dims, a, b, stride=2)
    for a, b in itertools.pairwise(features[::-1]):
        layers += [nn.Upsample(scale_factor=2.0), *_block(dims, a, b)]
    return nn.Sequential(*layers, conv(dims, features[0], outputs))
