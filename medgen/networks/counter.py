"""A count that training needs every step: which penalty is due, how far a network has grown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Counter(nn.Module):
    """Counts in a buffer, so that checkpoints hold it, and advances without waiting for a GPU."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self._known: int | None = None

    def advance(self, by: int = 1) -> int:
        """The count so far; afterwards it is larger by ``by``."""
        now = int(self.count) if self._known is None else self._known
        self.count += by
        self._known = now + by
        return now

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = None
