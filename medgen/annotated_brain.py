"""Brain slices with label maps, drawn without end from anatomical label maps.

The images are those of :mod:`medgen.anatomy`, cut axially and without skull, in three contrasts and
three states: ``healthy``; ``lesion``, many small or one large blob, as in multiple sclerosis or
with a tumour; ``stroke``, the shape of a real infarct. A condition is a state and a contrast, as
in ``stroke:flair``. Label maps name tissues (:data:`LABELS`); a lesion is labelled where the
simulated lesion changes the image visibly.

``image`` is in -1..1: -1 is the 1st percentile of the brain and air, 2/3 the 99th; what is brighter
than 1.2 times that range is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from medgen.anatomy import (
    LEAST_VISIBLE,
    LESION_SIGN,
    LabelMapSource,
    Subject,
    batch_generator,
    normalise,
    percentiles,
    scan,
)
from medgen.anatomy_settings import AnatomyConfig
from medgen.config import Config
from medgen.corruption import Lesion, blob, chance, paint_lesions, random_voxel, uniform
from medgen.errors import InputError
from medgen.label_maps import CORTEX, DEEP_GREY, FLUID
from medgen.run_record import hash_name

# Label values in the order of their names, and which FreeSurfer labels they join.
LABELS = (
    "background", "white_matter", "cortex", "deep_grey", "fluid", "cerebellum", "brainstem",
    "lesion",
)  # fmt: skip
CEREBELLUM = (7, 8, 46, 47)
BRAINSTEM = (16, 28, 60)  # with the ventral diencephalon that it goes over into
WHITE = (2, 41, 85)
TISSUES = (
    (), WHITE, tuple(set(CORTEX) - set(CEREBELLUM)), DEEP_GREY, FLUID, CEREBELLUM, BRAINSTEM, (),
)  # fmt: skip
# Drawn as the tissue around them: white matter lesions of these subjects, which are no simulated
# ones; choroid plexus and ventricular wall; vessels and dura in the fluid.
REDRAWN = {
    25: 2,
    57: 2,
    **dict.fromkeys((136, 137, 163, 164), 4),
    **dict.fromkeys((30, 62, 514), 24),
}
LESION = LABELS.index("lesion")
STATES = ("healthy", "lesion", "stroke")
CONTRASTS = ("flair", "t1", "t2")
# A slice with fewer lesion pixels is drawn without them and called healthy.
FEWEST_PIXELS = 5
# Intensity, of the brain's 1st to 99th percentile, that becomes 1.
BRIGHTEST = 1.2


class AnnotatedBrainConfig(Config):
    """Settings of the source; lengths in voxels of ``spacing_mm``."""

    folder: Path = Field(description="folder with label maps (.nii or .nii.gz)")
    lesions: Path = Field(description=".npz of real stroke shapes")
    subjects: tuple[str, ...] = Field((), description="label maps to train on; empty means all")
    validation_subjects: tuple[str, ...] = Field((), description="label maps held out")
    seed: int = 0
    spatial_dims: Literal[2] = Field(2, description="only slices are drawn")
    input_slices: Literal[1] = Field(1, description="only single slices are drawn")
    channels: Literal[1] = Field(1, description="one contrast per image")
    batch_size: int = Field(24, ge=1, description="images per batch")
    slices_per_slab: int = Field(3, ge=1, description="images cut from one drawn slab")
    slice_stride: int = Field(3, ge=1, description="distance between these images")
    size: tuple[int, int] = Field((96, 128), description="image size: right, front")
    spacing_mm: float = Field(1.5, gt=0, description="voxel size of the drawn images")
    reach: float = Field(
        1.3, ge=0, description="how far up and down slices are cut, in deviations of the brain"
    )


class AnnotatedBrain(LabelMapSource):
    """Draws ``image``, ``labels`` and ``condition``.

    Raises:
        LeakageError: If a subject is in both the training and the validation list.
        InputError: If label maps or lesion shapes are missing.
    """

    Config = AnnotatedBrainConfig  # type: ignore[assignment]
    channels = 1
    y_down = False
    condition_names = tuple(":".join(pair) for pair in product(STATES, CONTRASTS))
    label_names = LABELS

    def __init__(self, config: AnnotatedBrainConfig) -> None:
        super().__init__(
            AnatomyConfig(
                folder=config.folder,
                lesions=config.lesions,
                subjects=config.subjects,
                validation_subjects=config.validation_subjects,
                seed=config.seed,
                batch_size=config.batch_size,
                slices_per_slab=config.slices_per_slab,
                slice_stride=config.slice_stride,
                size=config.size,
                spacing_mm=config.spacing_mm,
            )
        )
        self.reach, self.image_size = config.reach, config.size
        self.label_count = len(LABELS)
        # Images are drawn without end: what is counted are label maps, each good for everything.
        training, held_out = len(self.subjects), len(self.validation_subjects)
        self.facts = {
            "images": training,
            "held_out_images": held_out,
            "groups": training,
            "held_out_groups": held_out,
            "conditions": dict.fromkeys(self.condition_names, training),
            "labels": LABELS,
            "hashed_ids": sorted(hash_name(name) for name in self.subject_names),
        }
        # By the index of a FreeSurfer label: the index it is drawn as, and its tissue.
        drawn = [REDRAWN.get(value, value) for value in self.values]
        drawn = [value if value in self.values else 0 for value in drawn]
        self.drawn = torch.tensor([self.values.index(value) for value in drawn])
        self.tissue = torch.tensor(
            [next((n for n, group in enumerate(TISSUES) if v in group), 0) for v in self.values]
        )

    def validation_batch(self, index: int) -> dict[str, Tensor]:
        """Batch number ``index`` from the held-out subjects only.

        Raises:
            InputError: If no subject was held out.
        """
        if not self.validation_subjects:
            msg = "no subject is held out: set data.validation_subjects"
            raise InputError(msg)
        return super().validation_batch(index)

    def _batch(self, subjects: Sequence[Subject], number: int) -> dict[str, Tensor]:
        config = self.config
        generator = batch_generator(config.seed, number)
        slabs = [
            self._slab(
                subjects[int(torch.randint(len(subjects), (), generator=generator))],
                int(torch.randint(len(self.condition_names), (), generator=generator)),
                generator,
            )
            for _ in range(math.ceil(config.batch_size / config.slices_per_slab))
        ]
        return {
            name: torch.cat([slab[name] for slab in slabs])[: config.batch_size]
            for name in slabs[0]
        }

    def _slab(self, subject: Subject, condition: int, generator: Generator) -> dict[str, Tensor]:
        """Slices of one brain in one contrast; those that no lesion reaches are healthy."""
        config = self.config
        state, contrast = self.condition_names[condition].split(":")
        depth = (config.slices_per_slab - 1) * config.slice_stride + 1
        shape = (depth, *config.size)
        found, distance = self._cut(subject, "axial", shape, self.reach, generator)
        found = self.drawn[found]
        tissue = self.tissue[found]
        mask = (tissue > 0) & (distance < uniform(generator, 0.0, 2.0))
        if int(mask.sum()) < 100:  # beside the brain; draw another
            return self._slab(subject, condition, generator)
        found, tissue = found * mask, tissue * mask
        painted = self._paint(found, contrast, generator)
        damaged, opacity = painted, torch.zeros_like(painted)
        if state != "healthy":
            solid = (self.white | self.grey)[found]
            difference = LESION_SIGN[contrast] * uniform(generator, 0.3, 0.9)
            lesions = self._lesions_of(state, found, solid, generator)
            damaged, opacity = paint_lesions(painted, lesions, solid, difference, generator)
        image, healthy, clean = scan(damaged, painted, mask, generator)
        low, high = percentiles(image, mask)
        seen = (clean - healthy).abs() > LEAST_VISIBLE * (high - low)
        lesion = (opacity > 0.5) & seen & mask
        ill = lesion.flatten(1).sum(1) >= FEWEST_PIXELS
        unharmed = healthy + image - clean
        shown = normalise(torch.where(ill[:, None, None], image, unharmed), mask, reference=image)
        tissue = torch.where(lesion & ill[:, None, None], LESION, tissue)
        without = CONTRASTS.index(contrast)  # the healthy conditions come first
        kept = slice(0, None, config.slice_stride)
        return {
            "image": (shown.clamp(max=BRIGHTEST) * 2 / BRIGHTEST - 1)[kept, None],
            "labels": tissue[kept, None],
            "condition": torch.where(ill, condition, without)[kept],
        }

    def _lesions_of(
        self, state: str, labels: Tensor, solid: Tensor, generator: Generator
    ) -> list[Lesion]:
        """Lesions (D, H, W) of a state, at least one of them in each slice that is cut out."""
        shape = tuple(labels.shape)
        rows = [
            (place.flatten().nonzero()[:, 0] + first * place.numel())
            for first, place in enumerate(solid)
            if first % self.config.slice_stride == 0 and place.any()
        ]
        if not rows:
            return []
        if state == "stroke":
            assert self.shapes is not None
            middle = random_voxel(rows[len(rows) // 2], shape, generator)
            place = self.shapes.place
            return [place(middle, shape, self.config.spacing_mm, generator, largest=60)]
        if chance(generator, 0.3):
            middle = random_voxel(rows[len(rows) // 2], shape, generator)
            return [blob(middle, uniform(generator, 5.0, 14.0), shape, generator)]
        radius = uniform(generator, 1.6, 4.0)
        count = len(rows) + int(uniform(generator, 0, 12))
        white = self.white[labels].flatten()
        lesions = []
        for number in range(count):
            row = rows[number % len(rows)]
            in_white = row[white[row]]
            often = len(in_white) > 0 and chance(generator, 0.8)
            centre = random_voxel(in_white if often else row, shape, generator)
            size = radius * math.exp(0.35 * float(torch.randn((), generator=generator)))
            lesions.append(blob(centre, size, shape, generator))
        return lesions
