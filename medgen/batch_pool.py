"""A limited number of drawn batches, kept and dealt out again and again in other orders.

For training data that take longer to draw than to learn from. What is dealt is a pure function of
the seed and the batch's number, as of any source: in whichever order and process it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Batch = dict[str, Tensor]


class BatchPool:
    """Batches drawn once, when they are first needed, and kept in memory at half precision.

    The first round deals them as they were drawn. In every further round the examples of all of
    them are shuffled into new batches, for which all must have been drawn: each process that asks
    for batches fills a pool of its own. Each example is mirrored along each axis or not.

    Args:
        draw: Makes batch number ``n``, whose tensors hold one example in each row; images are
            ``(B, C, *spatial)``.
        count: Number of batches to keep.
        size: Examples in each.
        dims: Axes of an image, which can be mirrored.
        seed: Of order and mirroring.
    """

    def __init__(
        self, draw: Callable[[int], Batch], count: int, size: int, dims: int, seed: int
    ) -> None:
        self.draw, self.count, self.size, self.dims, self.seed = draw, count, size, dims, seed
        self._kept: dict[int, Batch] = {}
        self._order: tuple[int, Tensor] | None = None

    def batch(self, index: int) -> Batch:
        """Batch number ``index``, in single precision."""
        turn, place = divmod(index, self.count)
        chosen = self._round(turn)[place * self.size : (place + 1) * self.size]
        generator = self._generator(1, index)
        examples = []
        for number in chosen.tolist():
            kept = self._drawn(number // self.size)
            mirrored = torch.rand(self.dims, generator=generator) < 0.5
            axes = [axis - self.dims for axis in range(self.dims) if mirrored[axis]]
            examples.append(
                {
                    name: value[number % self.size].flip(axes)
                    if value.ndim > self.dims + 1
                    else value[number % self.size]
                    for name, value in kept.items()
                }
            )
        return {name: _unpacked([item[name] for item in examples]) for name in examples[0]}

    def _round(self, turn: int) -> Tensor:
        """Numbers of all examples in the order of one round."""
        if self._order is None or self._order[0] != turn:
            number = self.count * self.size
            order = torch.arange(number)
            if turn:
                order = torch.randperm(number, generator=self._generator(0, turn))
            self._order = turn, order
        return self._order[1]

    def _drawn(self, number: int) -> Batch:
        if number not in self._kept:
            self._kept[number] = {name: _packed(v) for name, v in self.draw(number).items()}
        return self._kept[number]

    def _generator(self, purpose: int, number: int) -> Generator:
        mixed = (self.seed * 2 + purpose) * 1_000_003 + number
        return Generator().manual_seed(mixed % 2**63)


def _packed(value: Tensor) -> Tensor:
    """Half as large; masks an eighth of that."""
    if not value.is_floating_point():
        return value
    whole = value.bool()
    return whole if torch.equal(whole.to(value.dtype), value) else value.half()


def _unpacked(rows: list[Tensor]) -> Tensor:
    """One row per example: numbers that count things stay what they are."""
    kept = rows[0].dtype in {torch.bool, torch.float16}
    return torch.stack([row.float() if kept else row for row in rows])
