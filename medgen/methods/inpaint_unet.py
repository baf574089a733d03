"""Inpainting U-Net: fills holes with what healthy tissue would look like there.

A U-Net (Ronneberger et al. 2015) learns from healthy images with random holes, by what Zhao et al.,
"Loss Functions for Image Restoration With Neural Networks" (2017) found best, inside the hole only:

``L = |y - x| + v (y - x)^2 + w (1 - SSIM(y, x))``, x the truth, y the image with the hole filled.

The SSIM (Wang et al. 2004) at a voxel of the hole looks at a window that reaches beyond it, so it
also judges whether the seam fits. The network does not start from nothing: it predicts what has to
be added to the filling that stands in the hole already, the smoothest surface through its rim
(:func:`medgen.classical.biharmonic`), which knows all slices at the scan's own resolution. It sees
the hole as a second channel.

``output`` has the image's unit, and outside the hole its values. ``spread`` is the scale b of a
Laplace distribution of the error in the same unit, learnt beside the image (Kendall and Gal 2017);
it means something in the hole only. With ``input_slices`` > 1 (2-D only) neighbouring slices with
their holes enter as channels, and the middle one is filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from medgen.config import Config
from medgen.losses import mean_inside, ssim_inside
from medgen.methods._inpainting import DATA_RANGE, FillingUNet, apart
from medgen.methods._restoring import Restored, require_slices


class InpaintUNetConfig(Config):
    """Settings of the inpainting U-Net."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences), without the hole")
    input_slices: int = Field(1, ge=1, description="neighbouring slices as input; odd; 2-D only")
    fold: int = Field(
        1,
        ge=1,
        description="voxels per axis folded into channels before the first layer and unfolded "
        "after the last: 2 makes the network several times faster",
    )
    features: tuple[int, int, int, int, int] = Field(
        (16, 32, 64, 128, 160), description="channels at the five resolutions of the U-Net"
    )
    ssim_weight: float = Field(0.2, ge=0, description="weight of 1 - SSIM in the hole")
    square_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the squared error in the hole: where several fillings are possible, "
        "it asks for their mean, and the absolute error for their median",
    )
    spread: bool = Field(True, description="predict the size of the error as well")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay")


class InpaintUNet(nn.Module):
    """Corrects fillings of holes; its input channels are those of the image and the hole.

    Raises:
        InputError: If ``input_slices`` is even, or more than one in 3-D.
    """

    Config = InpaintUNetConfig
    training_only = ()

    def __init__(self, config: InpaintUNetConfig) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.input_slices = config.input_slices
        self.channels, self.out_channels = config.channels + 1, config.channels
        self.network = FillingUNet(
            config.spatial_dims, config.channels, config.input_slices, config.features,
            config.fold, spread=config.spread,
        )  # fmt: skip
        self.divisor = self.network.divisor

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for the one network."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"network": AdamW(self.network.parameters(), lr=rate, weight_decay=decay)}

    def forward(self, image: Tensor) -> Restored:
        """Images and holes ``(B, slices * (C + 1), *s)`` to the middle one ``(B, C, *s)``.

        Raises:
            InputError: The size is not a multiple of ``divisor``.
        """
        return self.network.fill(apart(image, self.config.channels))

    def soften(self, strength: float) -> None:
        """Make only this part of every correction from now on, 1 being all."""
        self.network.soften(strength)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """L1 and SSIM to the healthy image in the hole, and the likelihood of the spread."""
        made, target, mask = self(batch["image"]), batch["target"], batch["mask"]
        error = made.output - target
        l1, square = mean_inside(error.abs(), mask), mean_inside(error.square(), mask)
        spread = made.spread_loss(target, mask)
        loss = l1 + self.config.square_weight * square + spread
        parts = {"l1": l1, "square": square, "spread": torch.as_tensor(spread)}
        if self.config.ssim_weight:  # in 3-D it takes longer than the network
            similarity = ssim_inside(made.output, target, mask, data_range=DATA_RANGE)
            loss, parts["ssim"] = loss + self.config.ssim_weight * (1 - similarity), similarity
        yield "network", loss, {name: part.detach() for name, part in parts.items()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output``: the filled image; ``spread``: the scale of its error, above 0."""
        made: Restored = self(image)
        return made.outputs()
