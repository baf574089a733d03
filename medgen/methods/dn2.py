"""DN2: an image whose features have no near neighbour among those of healthy images is abnormal.

Bergman, Cohen and Hoshen, "Deep Nearest Neighbor Anomaly Detection" (2020, arXiv:2002.10445). A
frozen network, trained beforehand without labels, describes an image by ``z``, the mean over all
places ``p`` of its features ``f(p)``. The descriptions ``n_1, n_2, ...`` of healthy images are
kept. The score of an image is its distance from the nearest of them,
``s^2 = mean_j |z - n_j|^2`` over the ``neighbours`` nearest.

Where does it come from? Because ``z`` is a mean, the score is a mean too, exactly:
``s^2 = mean_p h(p)`` with ``h(p) = mean_j (z - n_j)^T (f(p) - n_j)``. The map shows ``h`` where it
is positive, scaled to the mean ``s``: high where the image departs from its neighbours in the
direction in which it departs as a whole.

There is no gradient and no optimiser: a training step describes a batch and keeps it. Three
channels are seen in colour, otherwise each by itself, in grey; a volume is the mean of its axial
slices.

``score`` is in units of the distance that healthy images have from each other: its mean is about 1
for an image as usual, without an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from medgen.methods._frozen import Frozen, FrozenConfig
from medgen.networks.features import COLOUR, FrozenFeatures

TINY = 1e-12


class DN2Config(FrozenConfig):
    """Settings of the nearest neighbours."""

    stages: tuple[Literal[1, 2, 3, 4], ...] = Field(
        (4,), min_length=1, description="which of its stages 1 to 4 describe an image"
    )
    neighbours: int = Field(5, ge=1, description="healthy images that one is compared with")
    capacity: int = Field(
        256, ge=1, description="healthy images that are kept, the last that training saw"
    )


class DN2(Frozen):
    """Measures how far an image is from the most similar healthy ones."""

    Config = DN2Config
    config: DN2Config
    bank: Tensor
    count: Tensor

    def __init__(self, config: DN2Config) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.extractor = FrozenFeatures(config.widths, config.stages)
        seen_alone = 1 if config.channels == COLOUR else config.channels
        self.register_buffer(
            "bank", torch.zeros(config.capacity, self.extractor.length * seen_alone)
        )
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yields no loss; keeps the descriptions of the batch's ``healthy`` images."""
        with torch.no_grad():
            new = self.embed(batch["healthy"]).flatten(2).mean(2)
            rows = (self.count + torch.arange(len(new), device=new.device)) % len(self.bank)
            self.bank[rows] = new
            self.count += len(new)
        yield from ()

    def embed(self, image: Tensor) -> Tensor:
        """Features ``(B, features, *grid)`` of images ``(B, C, *spatial)``."""
        stride = 2 ** max(self.config.stages)
        return self.extractor.places(image, [math.ceil(n / stride) for n in image.shape[2:4]])

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``score`` ``(B, 1, *spatial)``: its mean is the distance from healthy images."""
        found = self.embed(image)
        places = found.flatten(2)
        kept = self._kept()
        whole = places.mean(2)
        # Directly and not as |a|^2 - 2ab + |b|^2, which loses the digits of near neighbours.
        away = whole[:, None] - kept
        nearest = away.square().sum(2).topk(min(self.config.neighbours, len(kept)), largest=False)
        chosen = kept[nearest.indices]
        # (B, neighbours, features) and (B, features, places), centred on each neighbour in turn.
        towards = whole[:, None] - chosen
        parts = towards @ places - (towards * chosen).sum(2, keepdim=True)
        share = parts.mean(1).clamp(min=0).reshape(len(image), 1, *found.shape[2:])
        mode = "trilinear" if self.spatial_dims == 3 else "bilinear"
        share = F.interpolate(share, image.shape[2:], mode=mode)
        distance = nearest.values.mean(1).sqrt() / self._usual(kept)
        mean = share.flatten(1).mean(1)
        factor = torch.where(mean > 0, distance / mean.clamp(min=TINY), 0)
        return {"score": share * factor.reshape(-1, 1, *[1] * self.spatial_dims)}

    def _kept(self) -> Tensor:
        """The descriptions there are; the origin as long as there are none."""
        return self.bank[: max(1, min(int(self.count), len(self.bank)))]

    def _usual(self, kept: Tensor) -> Tensor:
        """Half of the healthy images are no farther than this from those nearest to them."""
        others = min(self.config.neighbours, len(kept) - 1)
        if others < 1:
            return kept.new_ones(())
        squares = torch.cdist(kept, kept).square().fill_diagonal_(math.inf)
        typical = squares.topk(others, largest=False).values.mean(1).sqrt().median()
        return torch.where(typical > 0, typical, 1)
