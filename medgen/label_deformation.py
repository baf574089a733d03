"""Smooth, invertible deformation of label maps, as a deterministic function of numbers.

A stationary velocity field, interpolated from a coarse grid of control vectors, is integrated by
scaling and squaring (Arsigny et al., MICCAI 2006), so that what touches stays together and nothing
folds; a small affine map follows. Labels are carried as one channel each, interpolated linearly,
and the largest wins: no label can appear that was not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SQUARINGS = 5
# Larger normal deviates are cut off: a rare draw must not tear the anatomy apart.
LARGEST_DEVIATE = 2.5


def affine_numbers(dims: int) -> int:
    """Logarithmic scales, rotations and shifts of a small affine map in 2-D (5) or 3-D (9)."""
    return dims + (1 if dims == 2 else 3) + dims


def one_hot(labels: Tensor, count: int) -> Tensor:
    """Label map ``(B, 1, *spatial)`` as float32 channels ``(B, count, *spatial)``.

    A value outside ``0 .. count - 1`` sets no channel.
    """
    values = torch.arange(count, device=labels.device)
    return (labels == values.view(1, count, *[1] * (labels.ndim - 2))).float()


def deform(
    labels: Tensor,
    count: int,
    control: Tensor,
    affine: Tensor,
    mirror: Tensor | None = None,
) -> Tensor:
    """Deform label maps.

    Args:
        labels: Values ``0 .. count - 1``, ``(B, 1, *spatial)``.
        count: Number of label values.
        control: Velocity at the control points, ``(B, dims, *points)``, as a part of the image's
            half extent along each axis; 0 leaves everything in place.
        affine: :func:`affine_numbers` ``(B, n)``: logarithmic scales, rotations in radians, and
            shifts as parts of the half extent.
        mirror: 1 or -1 along each axis, ``(B, dims)``; none mirrors nothing.

    Returns:
        ``(B, 1, *spatial)`` int64. Places that come from outside the map are 0.
    """
    size = tuple(labels.shape[2:])
    with torch.autocast(labels.device.type, enabled=False):
        matrix, shift = _affine(affine.float(), size)
        if mirror is not None:
            matrix = matrix * mirror[:, None, :].float()
        points = _apply(_integrate(_velocity(control.float(), size)), matrix, shift)
        # What lies outside is background: its channel is padded with 1, the others with 0.
        tissues = _sample(one_hot(labels, count)[:, 1:], points, padding="zeros")
    background = 1 - tissues.sum(1, keepdim=True)
    return torch.cat([background, tissues], dim=1).argmax(1, keepdim=True)


def identity_grid(size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Voxel centres ``(1, dims, *size)`` in -1..1 along each axis, first axis first."""
    axes = [(2 * torch.arange(n, device=device) + 1) / n - 1 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def _velocity(control: Tensor, size: tuple[int, ...]) -> Tensor:
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(control, size=size, mode=mode, align_corners=True)


def _integrate(velocity: Tensor) -> Tensor:
    """Where each voxel comes from, ``(B, dims, *spatial)``."""
    here = identity_grid(velocity.shape[2:], velocity.device)
    shift = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        shift = shift + _sample(shift, here + shift, padding="border")
    return here + shift


def _affine(numbers: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Matrices ``(B, dims, dims)`` and shifts ``(B, dims)``; rotations keep voxels square."""
    dims = len(size)
    scales, rest = numbers[:, :dims].exp(), numbers[:, dims:]
    turns, shifts = rest[:, :-dims], rest[:, -dims:]
    skew = numbers.new_zeros(len(numbers), dims, dims)
    pairs = [(0, 1)] if dims == 2 else [(0, 1), (0, 2), (1, 2)]
    for number, (a, b) in enumerate(pairs):
        skew[:, a, b], skew[:, b, a] = -turns[:, number], turns[:, number]
    extent = numbers.new_tensor(size)
    rotation = torch.linalg.matrix_exp(skew) * extent[None, None, :] / extent[None, :, None]
    return rotation * scales[:, None, :], shifts


def _apply(points: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    moved = torch.einsum("bij,bj...->bi...", matrix, points)
    return moved + shift.view(*shift.shape, *[1] * (points.ndim - 2))


def _sample(values: Tensor, points: Tensor, *, padding: str) -> Tensor:
    """Linear interpolation; torch wants the last axis first and coordinates last."""
    grid = points.flip(1).movedim(1, -1).expand(len(values), *[-1] * (points.ndim - 1))
    return F.grid_sample(values, grid, mode="bilinear", padding_mode=padding, align_corners=False)


class LabelBank(nn.Module):
    """Label maps seen in training, deformed as a latent vector says.

    The first entry of a vector chooses the map: its quantile under the normal distribution is the
    place among the maps of the wanted condition. The others are, in this order, one sign for every
    mirrored axis, the numbers of an affine map and the control vectors of the deformation; a vector
    of zeros gives a map of the bank as it is. Vectors that differ a little give the same map bent
    otherwise, or, across a border between quantiles, another map.

    Args:
        labels: Number of label values, at most 256.
        size: Spatial size.
        capacity: Maps to keep of each condition.
        conditions: Number of conditions; 0 for none.
        control_points: Of the deformation along each axis.
        deformation: Standard deviation of the control vectors, in parts of the half extent.
        affine: Standard deviation of scales, rotations (radians) and shifts (half extents).
        mirror_axes: Axes along which the anatomy is symmetric.
    """

    maps: Tensor
    filled: Tensor

    def __init__(
        self,
        labels: int,
        size: Sequence[int],
        capacity: int,
        conditions: int,
        control_points: int,
        deformation: float,
        affine: float,
        mirror_axes: Sequence[int],
    ) -> None:
        super().__init__()
        self.labels, self.size, self.mirror_axes = labels, tuple(size), tuple(mirror_axes)
        self.points, self.deformation, self.affine = control_points, deformation, affine
        dims, kinds = len(self.size), max(1, conditions)
        self.register_buffer("maps", torch.zeros(kinds, capacity, *self.size, dtype=torch.uint8))
        self.register_buffer("filled", torch.zeros(kinds, dtype=torch.long))
        self.affine_numbers = affine_numbers(dims)
        self.latent = 1 + len(self.mirror_axes) + self.affine_numbers + dims * control_points**dims

    @torch.no_grad()
    def fill(self, labels: Tensor, condition: Tensor) -> None:
        """Take in maps ``(B, 1, *size)`` of conditions ``(B,)`` while there is room for them.

        A map that is in the bank already is not taken twice.
        """
        room = (self.filled < self.maps.shape[1]).tolist()
        if not any(room):
            return
        for entry, kind in zip(labels[:, 0].to(torch.uint8), condition.tolist(), strict=True):
            place = int(self.filled[kind])
            if place == self.maps.shape[1]:
                continue
            known = (self.maps[kind, :place] == entry).flatten(1).all(1).any()
            if not known:
                self.maps[kind, place] = entry
                self.filled[kind] += 1

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Label maps ``(B, 1, *size)`` int64 of latents ``(B, latent)``, conditions ``(B,)``.

        Of a condition whose part of the bank is empty, everything is background.
        """
        latent, dims = latent.float(), len(self.size)
        count = self.filled[condition]
        quantile = torch.special.ndtr(latent[:, 0])
        pick = torch.minimum((quantile * count).long(), (count - 1).clamp(min=0))
        chosen = self.maps[condition, pick].unsqueeze(1).long()
        bounded = latent.clamp(-LARGEST_DEVIATE, LARGEST_DEVIATE)
        mirror = latent.new_ones(len(latent), dims)
        for number, axis in enumerate(self.mirror_axes, start=1):
            mirror[:, axis] = torch.where(latent[:, number] < 0, -1.0, 1.0)
        first = 1 + len(self.mirror_axes)
        affine = bounded[:, first : first + self.affine_numbers] * self.affine
        control = bounded[:, first + self.affine_numbers :] * self.deformation
        control = control.reshape(-1, dims, *[self.points] * dims)
        return deform(chosen, self.labels, control, affine, mirror)
