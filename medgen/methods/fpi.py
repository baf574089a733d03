"""FPI: a network that finds what was pasted into healthy images also finds what does not belong.

Tan et al., "Detecting Outliers with Foreign Patch Interpolation" (MELBA 2022; arXiv 2020). A box of
a healthy image ``x`` is mixed with the same box of another one, ``(1 - f) x + f y`` with ``f``
drawn from 0.05..0.95, and a network predicts for every voxel how much of it is foreign, ``f``
inside the box and 0 outside. The loss is the cross-entropy with that soft label,
``-f log p - (1 - f) log(1 - p)``, averaged over the foreground. Nothing else is ever shown, so
there is no lesion model to be wrong about; but what looks like a pasted box is found best.

The variant ``cutpaste_seg`` pastes a patch or a scar of the image itself at another place of it
(Li et al., "CutPaste", CVPR 2021), whose classifier of whole images becomes one of voxels here.

``log_odds`` are those of the network's ``p``: its sigmoid, 0..1, is the part of a voxel that is
believed to be foreign (``fpi``), or the probability that it was pasted (``cutpaste_seg``). Neither
is a probability of disease.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from medgen.config import Config
from medgen.corruption.pasting import Pasted, cut_paste, foreign_patch
from medgen.errors import InputError
from medgen.losses import mean_inside
from medgen.networks.grouped_unet import grouped_unet
from medgen.networks.sizes import require_multiples

GROUPS = 4


class FPIConfig(Config):
    """Settings of the network that finds pasted patches."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    features: tuple[int, int, int, int, int] = Field(
        (32, 64, 128, 128, 128),
        description=f"channels at the five resolutions of the U-Net, multiples of {GROUPS}",
    )
    paste: Literal["foreign", "cutpaste"] = Field(
        "foreign", description="patches of another image of the batch, or of the same image"
    )
    learning_rate: float = Field(1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay")


class FPI(nn.Module):
    """Finds pasted patches.

    Raises:
        InputError: ``features`` cannot be divided into groups for normalisation.
    """

    Config = FPIConfig
    divisor = 16
    input_slices = 1

    def __init__(self, config: FPIConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.network = grouped_unet(
            config.spatial_dims, config.channels, 1, config.features, GROUPS
        )

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for the one network."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"network": AdamW(self.network.parameters(), lr=rate, weight_decay=decay)}

    def forward(self, image: Tensor) -> Tensor:
        """Image ``(B, C, *spatial)`` to logits ``(B, 1, *spatial)``."""
        require_multiples(image.shape[2:], self.divisor)
        logits: Tensor = self.network(image)
        return logits

    def pasted(self, healthy: Tensor) -> Pasted:
        """Every image of a batch with one patch in it, by torch's global generator.

        Args:
            healthy: ``(B, C, *spatial)``.

        Returns:
            ``image`` ``(B, C, *spatial)`` and ``factor`` ``(B, 1, *spatial)``.

        Raises:
            InputError: There is no other image to take a patch from.
        """
        if self.config.paste == "foreign" and len(healthy) < 2:
            raise InputError("fpi needs two images in a batch at least", "Raise batch_size.")
        generator = Generator().manual_seed(int(torch.randint(2**62, ())))
        if self.config.paste == "foreign":
            pairs = zip(healthy, healthy.roll(1, 0), strict=True)
            found = [foreign_patch(image, other, generator) for image, other in pairs]
        else:
            found = [cut_paste(image, generator) for image in healthy]
        images, factors = zip(*found, strict=True)
        return Pasted(torch.stack(images), torch.stack(factors))

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Cross-entropy with the part of each voxel that is foreign, inside the mask."""
        image, factor = self.pasted(batch["healthy"])
        logits = self(image)
        surprise = F.binary_cross_entropy_with_logits(logits, factor, reduction="none")
        with torch.no_grad():
            error = mean_inside((torch.sigmoid(logits) - factor).abs(), batch["mask"])
        yield "network", mean_inside(surprise, batch["mask"]), {"error": error}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``log_odds`` ``(B, 1, *spatial)`` that a voxel is foreign, without bounds."""
        return {"log_odds": self(image)}
