"""Intensity: bright is abnormal. The baseline without training that stands in every table.

Thresholding histogram-equalised FLAIR finds lesions better than most published autoencoders
(Meissen et al., "Challenging Current Semi-Supervised Anomaly Segmentation Methods for Brain MRI",
2021). The preparation equalises the histogram (``normalisation: equalise``); this method hands the
result on. ``score`` has the unit of the prepared image: after equalisation the fraction of brain
voxels that are darker, 0..1. It is no probability, and means nothing where lesions are dark (T1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from medgen.config import Config


class IntensityConfig(Config):
    """Settings of the intensity baseline."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")


class Intensity(nn.Module):
    """Gives the image's brightness as its anomaly score. Has no parameters."""

    Config = IntensityConfig
    divisor = 1
    input_slices = 1

    def __init__(self, config: IntensityConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims

    def optimizers(self) -> dict[str, Optimizer]:
        """None: there is nothing to train."""
        return {}

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """None: there is nothing to train."""
        yield from ()

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``score`` ``(B, 1, *spatial)``, the mean over the channels of ``(B, C, *spatial)``."""
        return {"score": image.mean(1, keepdim=True)}
