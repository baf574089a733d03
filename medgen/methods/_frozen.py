"""What methods share that look through the frozen features of a network trained elsewhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from medgen.config import Config
from medgen.networks.features import FrozenFeatures


class FrozenConfig(Config):
    """Which features an image is seen through."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    extractor: str = Field(
        "medgen-features",
        description="shipped package, or folder of a package or training run of selfsup, whose "
        "network is copied when training begins",
    )
    widths: tuple[int, int, int, int] = Field(
        (32, 64, 128, 160), description="channels of the extractor's stages"
    )


class Frozen(nn.Module):
    """A method without gradients, on features that stay as they are.

    Attributes:
        extractor: The network that sees; subclasses build it.
    """

    divisor = 1
    input_slices = 1
    config: FrozenConfig
    extractor: FrozenFeatures

    def begin(self) -> None:
        """Copy the extractor's weights: training calls this once, before its first step.

        Raises:
            InputError: There is no such extractor, or its network is another.
        """
        self.extractor.copy_weights(self.config.extractor)

    def optimizers(self) -> dict[str, Optimizer]:
        """None: nothing is fitted by gradients."""
        return {}
