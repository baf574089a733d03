"""Holes in slabs of anatomy, and what a classical method puts into them: where networks start.

As in use, a hole is filled from all sides in 3-D, before slices are cut from the slab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from medgen.classical import biharmonic
from medgen.corruption import uniform
from medgen.corruption.holes import random_hole
from medgen.corruption.lesions import LesionShapes

# Largest residual of the equation: fillings then differ from those of use by less than noise does.
RESIDUAL = 1e-3


def cut_holes(
    tissue: Tensor,
    places: Sequence[int],
    kinds: Mapping[str, tuple[float, float]],
    spacing_mm: float,
    largest: float,
    generator: Generator,
    shapes: LesionShapes | None = None,
) -> Tensor:
    """Holes in a slab: one in each of some slices, and up to two more.

    Args:
        tissue: bool ``(D, H, W)``, where holes are centred; they may reach beyond.
        places: Slices in which the holes are centred.
        kinds: Of holes, and the range of their size in mm; see :mod:`medgen.corruption.holes`.
        spacing_mm: Voxel size.
        largest: Largest part of the tissue that all together may take.
        generator: Source of randomness.
        shapes: Real lesions, needed for ``lesion_shape``.

    Returns:
        bool ``(D, H, W)``.
    """
    allowed = largest * float(tissue.sum())
    smallest = {kind: (least, least) for kind, (least, _) in kinds.items()}
    hole = torch.zeros_like(tissue)

    def cut(place: int, of: Mapping[str, tuple[float, float]]) -> Tensor:
        return hole | random_hole(
            tissue.shape, tissue, spacing_mm, of, generator, shapes, middle=place
        )

    for place in places:
        more = cut(place, kinds)
        if float((more & tissue).sum()) > allowed:  # it has to be a small one
            more = cut(place, smallest)
        hole = more
    for _ in range(int(uniform(generator, 0, 3) ** 2 / 3)):
        more = cut(places[int(torch.randint(len(places), (), generator=generator))], kinds)
        if float((more & tissue).sum()) <= allowed:
            hole = more
    return hole


def fill(image: Tensor, hole: Tensor) -> Tensor:
    """The image ``(D, H, W)`` with the smoothest surface in its hole; a new tensor.

    A single slice is filled in 2-D, and what is all hole stays as it is.
    """
    if hole.all():
        return image.clone()
    single = len(image) == 1
    values, inside = (each.numpy()[0] if single else each.numpy() for each in (image, hole))
    filled = torch.from_numpy(biharmonic(values, inside, RESIDUAL))
    return filled[None] if single else filled
