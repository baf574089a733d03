"""Where the tiles of an image lie, and how much each counts in the average.

An image is seen as a stack of *items* (the slices of a view, or the one whole volume), each item
as overlapping *windows* of one size, and a *job* is one window of one item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Window = tuple[slice, ...]
Job = tuple[Window, int]


@dataclass(frozen=True)
class Sweep:
    """One walk over an image, slice by slice or over the image as one item.

    Attributes:
        spatial: Spatial size of the image.
        axis: Spatial axis along which slices are cut; None for one item.
        tile: Spatial size the network sees.
        slices: Neighbouring slices the network sees as channels.
        mirror: What a left-right mirror turns around: an item's first axis, the order of slices,
            or nothing.
        overlap_fraction: Share of a tile that the next one covers.
        blending: Weight of a tile, "gaussian" or "constant".
    """

    spatial: tuple[int, ...]
    axis: int | None
    tile: tuple[int, ...]
    slices: int
    mirror: Literal["item", "order"] | None
    overlap_fraction: float
    blending: str

    @cached_property
    def items(self) -> int:
        """How many slices or volumes there are."""
        return 1 if self.axis is None else self.spatial[self.axis]

    @cached_property
    def size(self) -> tuple[int, ...]:
        """Spatial size of an item."""
        return tuple(n for dim, n in enumerate(self.spatial) if dim != self.axis)

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """Size of an item that is nowhere smaller than a tile."""
        return tuple(max(size, tile) for size, tile in zip(self.size, self.tile, strict=True))

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Voxels of padding in front; as many or one more behind, so an item stays centred."""
        return tuple((p - s) // 2 for p, s in zip(self.padded, self.size, strict=True))

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Voxels from one window to the next, along each axis."""
        return tuple(max(int(size * (1 - self.overlap_fraction)), 1) for size in self.tile)

    @property
    def padded_voxels(self) -> int:
        """Voxels of all padded items together."""
        return self.items * prod(self.padded)

    @property
    def tiles(self) -> int:
        """How many windows all items have together."""
        sizes = zip(self.padded, self.tile, self.steps, strict=True)
        return self.items * prod(-(-(padded - tile) // step) + 1 for padded, tile, step in sizes)

    @cached_property
    def windows(self) -> list[Window]:
        """Windows that cover the padded item; the last along an axis ends where the item ends."""
        from monai.data.utils import dense_patch_slices

        windows: list[Window] = dense_patch_slices(self.padded, self.tile, self.steps)
        return windows

    def target(self, window: Window) -> Window:
        """Where a window of a padded item lies in the item itself, channels first."""
        bounds = zip(window, self.before, self.size, strict=True)
        inside = (slice(max(w.start - b, 0), min(w.stop - b, s)) for w, b, s in bounds)
        return (slice(None), *inside)

    def source(self, window: Window) -> Window:
        """Where in the window's tile its target lies, channels first."""
        bounds = zip(self.target(window)[1:], self.before, window, strict=True)
        inside = (slice(t.start + b - w.start, t.stop + b - w.start) for t, b, w in bounds)
        return (slice(None), *inside)

    def stack(self, image: Tensor) -> Tensor:
        """View of ``(C, *spatial)`` as ``(items, C, *size)``."""
        return image[None] if self.axis is None else image.movedim(self.axis + 1, 0)

    def padded_stack(self, image: Tensor) -> Tensor:
        """Items ``(items, C, *padded)``, reflected at their borders; a view if nothing is added."""
        import torch

        stack = self.stack(image)
        for dim, (size, padded, before) in enumerate(
            zip(self.size, self.padded, self.before, strict=True), start=2
        ):
            if padded > size:
                period = max(2 * size - 2, 1)
                index = (torch.arange(padded, device=stack.device) - before) % period
                index = torch.minimum(index, period - index).clamp(max=size - 1)
                stack = stack.index_select(dim, index)
        return stack

    def jobs(self, inside: Tensor | None) -> list[Job]:
        """Every window of every item that holds a voxel of the mask, window after window."""
        if inside is None:
            return [(window, item) for window in self.windows for item in range(self.items)]
        stack = self.stack(inside)[:, 0]
        jobs: list[Job] = []
        for window in self.windows:
            wanted = stack[self.target(window)].flatten(1).any(1)
            jobs += [(window, item) for item in wanted.nonzero()[:, 0].tolist()]
        return jobs

    def cut(self, padded_stack: Tensor, job: Job) -> Tensor:
        """A job's tile ``(slices * C, *tile)``; the end slices repeat beyond the ends."""
        window, item = job
        tiles = padded_stack[(slice(None), slice(None), *window)]
        if self.slices == 1:
            return tiles[item]
        reach = self.slices // 2
        near = [min(max(i, 0), self.items - 1) for i in range(item - reach, item + reach + 1)]
        return tiles[near].flatten(0, 1)

    def mirrored(self, tiles: Tensor) -> Tensor:
        """Tiles ``(B, slices * C, *tile)`` as they are cut from the image's mirror."""
        if self.mirror == "item":
            return tiles.flip(2)
        return tiles.unflatten(1, (self.slices, -1)).flip(1).flatten(1, 2)

    def mirrored_back(self, maps: Tensor) -> Tensor:
        """Maps ``(B, C, *tile)`` of mirrored tiles, turned back."""
        return maps.flip(2) if self.mirror == "item" else maps

    def parts(
        self, jobs: list[Job], earlier: int, sweeps: int, device: str | torch.device
    ) -> Iterator[tuple[Window, Window, Tensor]]:
        """For each job where it goes in the item, from where in its tile, and its share there.

        A share ``(1, *part)`` of the average so far is the tile's weight / the weight so far. With
        several sweeps the weights of each sum to 1 in every voxel, so that the ``earlier`` ones
        weigh that many. A window skipped in an item holds no voxel of the mask there; inside the
        mask the sums are therefore complete.
        """
        import torch
        from monai.data.utils import compute_importance_map

        importance = compute_importance_map(self.tile, mode=self.blending, device=device)
        full = torch.zeros(self.padded, device=device)
        for window in self.windows if sweeps > 1 else ():
            full[window] += importance
        so_far = torch.full(self.padded, float(earlier), device=device)
        current: Window | None = None
        for window, _ in jobs:
            if window is not current:
                current = window
                weight = importance / full[window] if sweeps > 1 else importance
                so_far[window] += weight
                target, source = self.target(window), self.source(window)
                share = (weight / so_far[window])[None][source]
            yield target, source, share
