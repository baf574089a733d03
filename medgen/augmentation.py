"""Differentiable augmentation of what a critic sees, so that few images do not get memorised.

Both real and made images pass through it, and gradients flow back to the generator. Everything is
computed for the whole batch at once, on the images' device, in 2-D and in 3-D, with torch's global
random generator; no number travels to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.errors import InputError

DIFFERENTIABLE = ("colour", "translation", "cutout")
GEOMETRY = ("mirror", "quarter_turns", "translation", "scaling", "rotation")
COLOUR = ("brightness", "contrast", "saturation")
ADAPTIVE = (*GEOMETRY, *COLOUR, "cutout")


class DiffAugment(nn.Module):
    """DiffAugment (Zhao et al. 2020): always colour, translation and cutout, in this order.

    With the ranges of the paper: brightness +-0.5 (of -1..1), saturation 0..2, contrast 0.5..1.5,
    translation up to 1/8 of each edge, a hole of half of each edge. What is moved in or cut out is
    0. Saturation needs three channels.

    Args:
        operations: Those of :data:`DIFFERENTIABLE` to use.

    Raises:
        InputError: An unknown operation.
    """

    def __init__(self, operations: Sequence[str] = DIFFERENTIABLE) -> None:
        super().__init__()
        self.operations = _known(operations, DIFFERENTIABLE)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the same shape in float32; may leave -1..1."""
        image = image.float()
        if "colour" in self.operations:
            image = image + _uniform(image, -0.5, 0.5)
            if image.shape[1] == 3:
                image = _away_from(image.mean(1, keepdim=True), image, _uniform(image, 0, 2))
            mean = image.flatten(1).mean(1).reshape(-1, *(1,) * (image.ndim - 1))
            image = _away_from(mean, image, _uniform(image, 0.5, 1.5))
        if "translation" in self.operations:
            image = _shifted(image, 1 / 8)
        if "cutout" in self.operations:
            image = image * _outside_a_hole(image)
        return image


class AdaptiveAugment(nn.Module):
    """Adaptive augmentation (ADA; Karras et al. 2020): as much as the critic's overfitting asks.

    Each operation changes an image with the same probability, which :meth:`update` raises while
    the critic is surer of real images than ``target``. Below about 0.8 the generator does not
    learn to imitate the augmentation.

    Of the paper's pipeline this has pixel blitting (mirror, quarter turns, integer translation),
    geometry (scaling, rotation; one bilinear interpolation without the paper's oversampling, edges
    reflected), colour (brightness, contrast, and saturation for three channels; no luma flip and
    no hue rotation, which would exchange tissues and stains) and cutout; no filtering and no noise.
    Mirrors exchange the ends of the first axis (left and right). In 3-D, quarter turns are about an
    axis drawn at random, rotations about any direction.

    Args:
        dims: 2 or 3.
        operations: Those of :data:`ADAPTIVE` to use. Leave out what changes an image's meaning,
            such as mirror where the heart must stay left.
        target: Mean sign of the critic's output for real images to hold, the paper's r_t.
        speed: Images in which the probability can rise from 0 to 1.

    Raises:
        InputError: An unknown operation.
    """

    EVERY = 4  # updates that are averaged before the probability moves, as in the paper
    probability: Tensor
    signs: Tensor
    seen: Tensor
    calls: Tensor

    def __init__(
        self,
        dims: int,
        operations: Sequence[str] = ADAPTIVE,
        *,
        target: float = 0.6,
        speed: int = 500_000,
    ) -> None:
        super().__init__()
        self.dims, self.target, self.speed = dims, target, speed
        self.operations = _known(operations, ADAPTIVE)
        for name in ("probability", "signs", "seen", "calls"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, real_logits: Tensor) -> None:
        """Move the probability.

        Args:
            real_logits: The critic's outputs ``(B,)`` for augmented real images, above 0 where it
                takes them for real.
        """
        self.signs += real_logits.float().sign().sum()
        self.seen += len(real_logits)
        self.calls += 1
        due = (self.calls >= self.EVERY).float()
        step = (self.signs / self.seen - self.target).sign() * self.seen / self.speed
        self.probability.add_(due * step).clamp_(0, 1)
        for counter in (self.signs, self.seen, self.calls):
            counter.mul_(1 - due)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the same shape in float32; may leave -1..1."""
        image = image.float()
        if set(GEOMETRY) & set(self.operations):
            # In half precision, pixels would be moved by whole steps of their grid.
            with torch.autocast(image.device.type, enabled=False):
                image = self._moved(image)
        if "brightness" in self.operations:
            image = image + self._often(image, 0.2 * _normal(image), 0.0)
        if "contrast" in self.operations:
            factor = torch.exp2(0.5 * _normal(image))
            image = image * self._often(image, factor, 1.0)
        if "saturation" in self.operations and image.shape[1] == 3:
            factor = self._often(image, torch.exp2(_normal(image)), 1.0)
            image = _away_from(image.mean(1, keepdim=True), image, factor)
        if "cutout" in self.operations:
            image = image * self._often(image, _outside_a_hole(image), 1.0)
        return image

    def _often(self, image: Tensor, changed: Tensor, unchanged: float) -> Tensor:
        """``changed`` (one or more values per image), replaced where the chance says so."""
        chosen = torch.rand(len(image), device=image.device) < self.probability
        chosen = chosen.reshape(-1, *(1,) * (changed.ndim - 1))
        return torch.where(chosen, changed, torch.full_like(changed, unchanged))

    def _moved(self, image: Tensor) -> Tensor:
        """All geometric operations, in one interpolation."""
        batch, dims, device = len(image), self.dims, image.device
        sizes = torch.tensor(image.shape[:1:-1], dtype=torch.float32, device=device)
        matrix = torch.eye(dims, device=device).repeat(batch, 1, 1)  # of offsets in voxels
        shift = torch.zeros(batch, dims, device=device)
        per_axis = torch.zeros(batch, dims, device=device)
        if "mirror" in self.operations:
            sign = torch.ones_like(per_axis)
            sign[:, -1] -= 2 * torch.randint(2, (batch,), device=device)
            matrix = matrix * self._often(image, sign, 1.0)[:, :, None]
        if "quarter_turns" in self.operations:
            turns = torch.randint(4, (batch,), device=device)
            if len(set(image.shape[2:])) > 1:  # a quarter turn would not fit into the image
                turns = turns // 2 * 2
            angle = self._often(image, turns * (math.pi / 2), 0.0)
            axis = torch.eye(3, device=device)[torch.randint(3, (batch,), device=device)]
            matrix = matrix @ _rotation(angle, axis, dims)
        if "translation" in self.operations:
            voxels = ((2 * torch.rand_like(per_axis) - 1) * sizes / 8).round()
            shift = shift + self._often(image, voxels, 0.0)
        if "scaling" in self.operations:
            same, apart = torch.randn(batch, 1, device=device), torch.randn_like(per_axis)
            apart = apart - apart.mean(1, keepdim=True)
            matrix = matrix * self._often(image, torch.exp2(0.2 * same), 1.0)[:, :, None]
            matrix = matrix * self._often(image, torch.exp2(0.2 * apart), 1.0)[:, :, None]
        if "rotation" in self.operations:
            angle = self._often(image, (2 * torch.rand_like(per_axis[:, 0]) - 1) * math.pi, 0.0)
            axis = F.normalize(torch.randn(batch, 3, device=device), dim=1)
            matrix = matrix @ _rotation(angle, axis, dims)
        # affine_grid counts from -1 to 1 along every axis, the last axis first.
        theta = torch.cat([matrix * sizes / sizes[:, None], (2 * shift / sizes)[:, :, None]], 2)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        return F.grid_sample(
            image, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )


def _known(given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise InputError(f"unknown augmentation {unknown[0]!r}", f"Known: {', '.join(known)}.")
    return tuple(given)


def _normal(image: Tensor) -> Tensor:
    """One standard normal number for each image, ``(B, 1, ...)``."""
    return torch.randn(len(image), *(1,) * (image.ndim - 1), device=image.device)


def _uniform(image: Tensor, low: float, high: float) -> Tensor:
    """One number for each image, ``(B, 1, ...)``."""
    shape = (len(image), *(1,) * (image.ndim - 1))
    return low + (high - low) * torch.rand(shape, device=image.device)


def _away_from(centre: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """The image, its distance from ``centre`` multiplied."""
    return centre + (image - centre) * factor


def _shifted(image: Tensor, largest: float) -> Tensor:
    """Each image moved by whole voxels, up to this part of each edge; zeros come in."""
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        reach = int(size * largest + 0.5)
        shift = torch.randint(-reach, reach + 1, (len(image), 1), device=image.device)
        source = torch.arange(size, device=image.device) + shift
        shape = [len(image), *(1,) * (image.ndim - 1)]
        shape[axis] = size
        inside = ((source >= 0) & (source < size)).reshape(shape)
        index = source.clamp(0, size - 1).reshape(shape).expand_as(image)
        image = image.gather(axis, index) * inside
    return image


def _outside_a_hole(image: Tensor) -> Tensor:
    """0 in a box of half of each edge around a random voxel, 1 elsewhere: ``(B, 1, *spatial)``."""
    hole = torch.ones(len(image), *(1,) * (image.ndim - 1), device=image.device)
    for axis in range(2, image.ndim):
        size = image.shape[axis]
        centre = torch.randint(size + 1 - size % 2, (len(image), 1), device=image.device)
        offset = torch.arange(size, device=image.device) - centre
        half = max(1, int(size / 2 + 0.5)) // 2
        shape = [len(image), *(1,) * (image.ndim - 1)]
        shape[axis] = size
        hole = hole * ((offset >= -half) & (offset < half)).float().reshape(shape)
    return 1 - hole


def _rotation(angle: Tensor, axis: Tensor, dims: int) -> Tensor:
    """Rotations ``(B, dims, dims)`` by ``angle`` ``(B,)`` about unit vectors ``axis`` ``(B, 3)``.

    In 2-D the axis is the one that stands on the image.
    """
    if dims == 2:
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    cross = torch.stack([torch.stack(row, 1) for row in rows], 1)
    turn = torch.sin(angle)[:, None, None] * cross
    turn = turn + (1 - torch.cos(angle))[:, None, None] * (cross @ cross)
    return torch.eye(3, device=angle.device) + turn
