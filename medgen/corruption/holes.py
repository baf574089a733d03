"""Holes of known shape that are to be filled in again.

Kinds: ``blob``, an irregular ellipsoid; ``lesion_shape``, a real lesion's mask (see
:class:`~medgen.corruption.lesions.LesionShapes`); ``stroke``, free-form brush strokes as in Yu et
al., "Free-form image inpainting with gated convolution" (ICCV 2019); ``box``, a cuboid as in
Pathak et al., "Context encoders" (CVPR 2016). Sizes are in millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from medgen.corruption.lesions import LesionShapes, blob, random_voxel, uniform

KINDS = ("blob", "lesion_shape", "stroke", "box")
Voxel = tuple[int, int, int]


def random_hole(
    shape: Sequence[int],
    tissue: Tensor,
    spacing_mm: float,
    kinds: Mapping[str, tuple[float, float]],
    generator: Generator,
    shapes: LesionShapes | None = None,
    middle: int | None = None,
) -> Tensor:
    """A hole of one of the kinds, each as likely, in the middle slice's tissue.

    Args:
        shape: ``(D, H, W)``; a hole's centre lies in the tissue of the middle D, or anywhere in
            the tissue if that slice has none.
        tissue: bool ``(D, H, W)``, where holes may be centred; they may reach beyond.
        spacing_mm: Voxel size.
        kinds: Names of :data:`KINDS` and least and largest size in mm: diameter of a blob, extent
            of a lesion, width of a brush, side of a box.
        generator: Source of randomness.
        shapes: Real lesions, needed for ``lesion_shape``.
        middle: Another slice to take for the middle one.

    Returns:
        bool ``(D, H, W)``; never empty if there is any tissue.
    """
    names = sorted(kinds)
    kind = names[int(torch.randint(len(names), (), generator=generator))]
    low, high = kinds[kind]
    size = math.exp(uniform(generator, math.log(low), math.log(high))) / spacing_mm
    centre = _centre(tissue, int(shape[0]) // 2 if middle is None else middle, generator)
    full = (int(shape[0]), int(shape[1]), int(shape[2]))
    if kind == "stroke":
        hole = _stroke(centre, size, full, generator)
    elif kind == "box":
        hole = _box(centre, size, full, generator)
    else:
        hole = torch.zeros(full, dtype=torch.bool)
        if kind == "blob" or shapes is None:
            lesion = blob(centre, size / 2, full, generator)
        else:
            lesion = shapes.place(centre, full, spacing_mm, generator, largest=size)
        hole[lesion.box] = lesion.alpha > 0.5
    hole[centre] = True
    return hole


def _centre(tissue: Tensor, middle: int, generator: Generator) -> Voxel:
    """A voxel of the tissue of one slice; of any tissue; or the middle of that slice."""
    shape = tuple(tissue.shape)
    inside = tissue[middle].flatten().nonzero()[:, 0] + middle * shape[1] * shape[2]
    if not len(inside):
        inside = tissue.flatten().nonzero()[:, 0]
    if not len(inside):
        return middle, shape[1] // 2, shape[2] // 2
    return random_voxel(inside, shape, generator)


def _box(centre: Voxel, size: float, shape: Voxel, generator: Generator) -> Tensor:
    """A cuboid whose sides are up to a third longer or shorter than ``size`` voxels."""
    hole = torch.zeros(shape, dtype=torch.bool)
    parts = []
    for middle, length in zip(centre, shape, strict=True):
        half = size * math.exp(uniform(generator, -0.3, 0.3)) / 2
        parts.append(slice(max(0, round(middle - half)), min(length, round(middle + half) + 1)))
    hole[tuple(parts)] = True
    return hole


def _stroke(start: Voxel, width: float, shape: Voxel, generator: Generator) -> Tensor:
    """A brush drawn along a few straight pieces, each turning a little from the one before."""
    places = torch.tensor([start], dtype=torch.float32)
    # In a thin slab the brush stays near the slice, so that the slice shows more than a dot.
    lean = torch.tensor([0.0 if n == 1 else n / max(shape) for n in shape]).sqrt()
    course = lean * torch.randn(3, generator=generator)
    for _ in range(2 + int(uniform(generator, 0, 4))):
        course = course / course.norm() + 0.8 * lean * torch.randn(3, generator=generator)
        length = width * uniform(generator, 1.0, 3.0)
        count = max(2, math.ceil(length / max(width / 3, 0.5)))
        steps = torch.linspace(0, length, count)[1:, None]
        places = torch.cat([places, places[-1] + steps * course / course.norm()])
    reach = max(width / 2, 0.5)
    low = (places.amin(0) - reach).floor().long().clamp(min=0)
    limits = torch.tensor(shape)
    high = torch.minimum((places.amax(0) + reach).ceil().long() + 1, limits)
    hole = torch.zeros(shape, dtype=torch.bool)
    if (high <= low).any():
        return hole
    axes = [torch.arange(int(a), int(b)).float() for a, b in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    near = torch.cdist(grid.reshape(-1, 3), places).amin(1) <= reach
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    hole[box] = near.reshape(grid.shape[:-1])
    return hole
