"""Restore: one network that repairs simulated damage and says where the damage was.

The image with simulated anomalies goes in; the healthy image and, for every voxel, the
probability that it was damaged come out. Training images are drawn from anatomical label maps
with random contrast (the idea of Billot et al., SynthSeg, Med Image Anal 2023), so the network
cannot rely on one scanner or sequence. Learning to localise synthetic anomalies directly follows
Tan et al., "Detecting outliers with foreign patch interpolation" (2020).

``log_odds`` are those of damage: their sigmoid, between 0 and 1, means *how likely the training
simulation would have put damage here*; it is not the probability of disease. Averaging log-odds
over views instead of probabilities lets a view that is sure of health outweigh an unsure one.
``restored`` has the image's unit.

The network is a U-Net (Ronneberger 2015). With ``input_slices`` > 1 (2-D only) neighbouring
slices enter as channels and the middle one is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from monai.networks.nets import BasicUNet
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import mean_inside, soft_dice
from medgen.networks.folding import fold, unfold
from medgen.networks.sizes import require_multiples


class RestoreConfig(Config):
    """Settings of the restoration network."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
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
    restoration_weight: float = Field(1.0, ge=0, description="weight of the L1 restoration loss")
    anomaly_weight: float = Field(
        5.0, gt=0, description="weight of anomalous voxels in the cross-entropy"
    )
    learning_rate: float = Field(1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay")


class Restore(nn.Module):
    """Predicts the healthy image and the probability of damage.

    Raises:
        InputError: If ``input_slices`` is even, or more than one in 3-D.
    """

    Config = RestoreConfig

    def __init__(self, config: RestoreConfig) -> None:
        super().__init__()
        if config.input_slices % 2 == 0 or (config.spatial_dims == 3 and config.input_slices > 1):
            msg = (
                "input_slices must be odd, and 1 for a 3-D network; "
                f"got {config.input_slices} in {config.spatial_dims}-D"
            )
            raise InputError(msg)
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.input_slices = config.input_slices
        self.divisor = 16 * config.fold
        folded = config.fold**config.spatial_dims
        self.network = BasicUNet(
            spatial_dims=config.spatial_dims,
            in_channels=config.channels * config.input_slices * folded,
            out_channels=(config.channels + 1) * folded,
            features=(*config.features, config.features[0]),
            norm="batch",
        )
        # On CPUs 2-D convolutions run about 1.5 times faster in this layout.
        self.layout = torch.channels_last if config.spatial_dims == 2 else torch.channels_last_3d
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for the one network."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"network": AdamW(self.network.parameters(), lr=rate, weight_decay=decay)}

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``(B, slices * C, *s)`` to restored ``(B, C, *s)`` and logits ``(B, 1, *s)``."""
        require_multiples(image.shape[2:], self.divisor)
        folded = fold(image, self.config.fold).contiguous(memory_format=self.layout)
        out = unfold(self.network(folded), self.config.fold)
        channels = self.config.channels
        middle = channels * (self.input_slices // 2)
        # The network predicts the correction, so an undamaged image costs it nothing.
        restored = image[:, middle : middle + channels] + out[:, :channels]
        return restored, out[:, channels:]

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """L1 to the healthy image, Dice and cross-entropy of the damage, inside the mask."""
        restored, logits = self(batch["image"])
        mask, anomaly = batch["mask"], batch["anomaly"]
        restoration = mean_inside((restored - batch["healthy"]).abs(), mask)
        # Lesions are under 2 % of the brain: without the weight nothing is learnt for long.
        weight = logits.new_tensor(self.config.anomaly_weight)
        surprise = F.binary_cross_entropy_with_logits(
            logits, anomaly, pos_weight=weight, reduction="none"
        )
        entropy = mean_inside(surprise, mask)
        overlap = soft_dice(torch.sigmoid(logits) * mask, anomaly)
        loss = entropy + 1 - overlap + self.config.restoration_weight * restoration
        parts = {"entropy": entropy, "overlap": overlap, "restoration": restoration}
        yield "network", loss, {name: part.detach() for name, part in parts.items()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` in the image's unit and the ``log_odds`` of damage, without bounds."""
        restored, logits = self(image)
        return {"restored": restored, "log_odds": logits}
