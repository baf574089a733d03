"""How much memory a network needs, found without running it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FLOAT_BYTES = 4
# Convolution libraries keep reordered copies and scratch space that no tensor shows.
WORKSPACE = 2
# Assumed live copies of a batch, for a network that cannot be traced.
UNTRACED_COPIES = 64


def trace(
    predict: Callable[[Tensor], dict[str, Tensor]], shape: tuple[int, ...]
) -> tuple[float, int]:
    """Peak bytes alive during one prediction, and the channels of all its maps together.

    Every operation runs on tensors that have a shape and no data (PyTorch's "meta" device), so
    this costs milliseconds and no memory whatever the shape. Counted are the tiles of the batch
    and, with an allowance for scratch space, the largest set of intermediate results alive at
    once; not the weights. A network whose operations depend on the values cannot be traced this
    way; it is assumed to hold ``UNTRACED_COPIES`` of its batch.

    Args:
        predict: A method's prediction, in evaluation mode.
        shape: Of the batch, ``(B, C, *spatial)``.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

    class Tracker(TorchDispatchMode):
        """Adds up the storages alive; one is counted once however many tensors share it."""

        def __init__(self) -> None:
            super().__init__()
            self.known: set[int] = set()
            self.live = self.peak = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
            result = func(*args, **kwargs)
            tree_map_only(torch.Tensor, self.count, result)
            return result

        def count(self, tensor: Tensor) -> None:
            storage = tensor.untyped_storage()
            if id(storage) not in self.known:
                self.known.add(id(storage))
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.release, id(storage), storage.nbytes())

        def release(self, key: int, size: int) -> None:
            self.known.discard(key)
            self.live -= size

    batch = FLOAT_BYTES * prod(shape)
    try:
        with torch.inference_mode(), Tracker() as tracker:
            outputs = predict(torch.empty(shape, device="meta"))
    except (RuntimeError, TypeError, ValueError):
        return UNTRACED_COPIES * batch, 2 * shape[1]
    return WORKSPACE * tracker.peak + batch, sum(output.shape[1] for output in outputs.values())
