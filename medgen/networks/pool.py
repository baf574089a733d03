"""A history of made images that a critic sees beside the newest ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Half of what the critic sees is older (Shrivastava et al. 2017; Zhu et al. 2017: 50 images).

    Until the pool is full every image is kept and given back. Then each one is, with probability
    1/2, exchanged for one of the pool's, drawn uniformly, and else given back without being kept.
    Images are a buffer, so that a resumed run sees the same ones.

    Args:
        size: Images it keeps; 0 gives every image back.
    """

    images: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.empty(0))

    @torch.no_grad()
    def forward(self, made: Tensor) -> Tensor:
        """Images ``(B, ...)`` for the critic, without gradients, in place of those just made."""
        if not self.size:
            return made.detach()
        given = made.detach().clone()
        free = self.size - len(self.images)
        if free > 0:
            kept = given[:free]
            self.images = torch.cat([self.images, kept]) if len(self.images) else kept.clone()
        for number in range(max(free, 0), len(given)):
            old, slot = torch.rand(()).item() < 0.5, int(torch.randint(self.size, ()))
            if old:
                newest = given[number].clone()
                given[number] = self.images[slot]
                self.images[slot] = newest
        return given

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state.get(f"{prefix}images")
        if stored is not None:  # as many images as there were
            self.images = torch.empty_like(stored, device=self.images.device)
        super()._load_from_state_dict(state, prefix, *args)
