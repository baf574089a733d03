"""One step of training, as the loop does it, with its promises checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def step(
    method: Any, optimizers: dict[str, Any], batch: dict[str, Tensor]
) -> list[tuple[str, float]]:
    """Names and losses in their order; all losses, parts and gradients must be finite."""
    losses = []
    for name, loss, parts in method.train().losses(batch):
        assert loss.ndim == 0
        assert torch.isfinite(loss)
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value in parts.values())
        optimizers[name].zero_grad()
        loss.backward()
        for group in optimizers[name].param_groups:
            for weight in group["params"]:
                assert weight.grad is not None
                assert torch.isfinite(weight.grad).all()
        optimizers[name].step()
        losses.append((name, float(loss.detach())))
    return losses
