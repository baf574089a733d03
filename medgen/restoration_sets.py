"""Pairs of damaged and true images for the four restoration tasks, drawn without end.

Anatomy is drawn from label maps (or phantoms) as in :mod:`medgen.anatomy`, real scans come as
patches (:mod:`medgen.real_scans`), and :mod:`medgen.corruption` does the damage:

- ``inpaint``: holes are cut into the slab and filled by its smoothest continuation in 3-D, which
  is what a network sees and corrects (:mod:`medgen.holed_slabs`); the truth is the image as it
  was, its noise included.
- ``super_resolve``: the truth is seen by larger voxels through a Gaussian point-spread function or
  slice profile, gets noise, is interpolated back by a cubic B-spline and made consistent with what
  was seen.
- ``denoise``: the truth gets noise and, if asked for, motion or shading.
- ``translate``: the same anatomy and lesions are painted in two contrasts; the input has noise, the
  truth has none. Drawn anatomy only: it is what makes perfectly aligned pairs.

A batch holds ``image`` ``(B, slices * C_in, *spatial)`` (slice after slice), ``target``
``(B, 1, *spatial)`` of the middle slice and ``mask`` ``(B, 1, *spatial)``, where the result counts.
Values are scaled so that the input's 1st and 99th percentile (in the foreground, outside any hole)
become 0 and 1, and are not clipped. Outside a skull-stripped brain everything is 0. Like all
sources, ``source.batch(i)`` is a pure function of the settings and ``i``. Where drawing takes
longer than learning, ``pool`` batches are drawn and dealt out again and again
(:mod:`medgen.batch_pool`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Generator, Tensor

from medgen.anatomy import (
    LESION_SIGN,
    PERCENTILES,
    PLANES,
    AnatomySource,
    LabelMapSource,
    PhantomSource,
    Subject,
    batch_generator,
    choose,
)
from medgen.batch_pool import BatchPool
from medgen.corruption import chance, paint_lesions, uniform
from medgen.corruption.artefacts import acquired, bias_field, motion
from medgen.corruption.coarse_patches import patch_axis, refined_start
from medgen.corruption.noise import random_noise
from medgen.corruption.resolution import along
from medgen.errors import InputError
from medgen.holed_slabs import cut_holes, fill
from medgen.real_scans import RealScans, RealScansConfig
from medgen.restoration_settings import USUAL_NOISE, RestorationConfig

ANATOMY: dict[str, type[AnatomySource]] = {
    "label_maps": LabelMapSource,
    "phantoms": PhantomSource,
}
# Settings of the anatomy that the source's own must agree with, and so are never given twice.
SHARED = ("seed", "spatial_dims", "input_slices", "slices_per_slab", "slice_stride", "size")


class Slab(NamedTuple):
    """A piece of anatomy ``(D, H, W)``: ``truth`` without noise, not negative, 1 about bright.

    ``source`` is the input before noise if it has another contrast. ``tissue`` is the foreground,
    ``shown`` what is not blanked out (all, or the brain), ``counted`` where the result counts.
    ``wanted`` counts the target contrasts. ``real`` truths have a scanner's noise already.
    """

    truth: Tensor
    tissue: Tensor
    shown: Tensor
    counted: Tensor
    source: Tensor | None = None
    wanted: int = 0
    real: bool = False


class RestorationSource:
    """Draws batches for one restoration task.

    Attributes:
        channels: Channels of one input slice.
        out_channels: Channels of the target.
        facts: What the real scans are, if there are any.
        subject_names: Of the label maps that are trained on.

    Raises:
        InputError: There is no data, a setting of it is wrong, or the task cannot use it.
        LeakageError: Data are on both sides of a split.
    """

    Config = RestorationConfig

    def __init__(self, config: RestorationConfig) -> None:
        self.config = config
        if config.anatomy is None and config.images is None:
            msg = "data.anatomy and data.images are both left out: there is nothing to draw from"
            raise InputError(msg, "Set data.anatomy.kind to phantoms for a first try.")
        if config.task == "translate" and config.images is not None:
            msg = "data.images holds one contrast of each scan, but translate needs two"
            raise InputError(msg, "Use data.kind domains for pairs of real images.")
        self.anatomy = None if config.anatomy is None else _anatomy(config, config.anatomy)
        self.images = None if config.images is None else _real_scans(config, config.images)
        self.subject_names: tuple[str, ...] = getattr(self.anatomy, "subject_names", ())
        if self.images is not None:
            self.facts = self.images.facts
        if "lesion_shape" in config.holes and getattr(self.anatomy, "shapes", None) is None:
            raise InputError(
                "data.holes asks for lesion_shape, but there are no lesion shapes",
                "Set data.anatomy.lesions to an .npz of them, or leave that kind of hole out.",
            )
        planes = len(config.targets) if len(config.targets) > 1 else 0
        self.channels = {"inpaint": 2, "translate": 1 + planes}.get(config.task, 1)
        self.out_channels = 1
        self.noise = config.noise or USUAL_NOISE[config.task]
        share = config.image_share if self.anatomy and self.images else float(self.anatomy is None)
        self.real_images = round(share * config.batch_size)
        self._pool: BatchPool | None = None
        if config.pool:
            self._pool = BatchPool(
                self._training_batch, config.pool, config.batch_size, config.spatial_dims,
                config.seed,
            )  # fmt: skip

    def batch(self, index: int) -> dict[str, Tensor]:
        """Training batch number ``index``."""
        return self._training_batch(index) if self._pool is None else self._pool.batch(index)

    def _training_batch(self, index: int) -> dict[str, Tensor]:
        return self._batch(2 * index, held_out=False)

    def validation_batch(self, index: int) -> dict[str, Tensor]:
        """Batch number ``index`` of held-out subjects and scans only, if any are held out."""
        return self._batch(2 * index + 1, held_out=True)

    @property
    def holds_out(self) -> bool:
        """Whether nothing in a validation batch was ever trained on."""
        return (self.anatomy is None or bool(self.anatomy.validation_subjects)) and (
            self.images is None or bool(self.images.held_out)
        )

    def _batch(self, number: int, *, held_out: bool) -> dict[str, Tensor]:
        generator = batch_generator(self.config.seed, number)
        parts: list[dict[str, Tensor]] = []
        drawn = self.config.batch_size - self.real_images
        while len(parts) < drawn:
            parts += self._parts(self._drawn(generator, held_out=held_out), generator)
        parts = parts[:drawn]
        while len(parts) < self.config.batch_size:
            parts += self._parts(self._real(generator, held_out=held_out), generator)
        parts = parts[: self.config.batch_size]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    # What there is before it is damaged.

    def _shape(self, slices: int) -> tuple[int, ...]:
        """Size ``(D, H, W)`` of a slab from which ``slices`` 2-D images are cut."""
        config = self.config
        if config.spatial_dims == 3:
            return tuple(config.size)
        depth = (slices - 1) * config.slice_stride + config.input_slices
        return (depth + 2 * self._margin(), *config.size)

    def _margin(self) -> int:
        """Slices beyond the outer ones that large voxels also see, or holes are filled from."""
        config = self.config
        if config.task == "inpaint" and not (self.images is not None and self.images.flat):
            return config.slab_margin
        if config.task != "super_resolve" or config.spatial_dims == 3:
            return 0
        largest = max(factors[0] for factors in config.factors)
        return math.ceil(largest / 2) if largest > 1 else 0

    def _drawn(self, generator: Generator, *, held_out: bool) -> Slab:
        """A slab of synthesised anatomy."""
        anatomy, config = self.anatomy, self.config
        assert anatomy is not None
        subjects = anatomy.validation_subjects if held_out else anatomy.subjects
        subjects = subjects or anatomy.subjects
        subject = subjects[int(torch.randint(len(subjects), (), generator=generator))]
        shape = self._shape(config.slices_per_slab)
        plane, offset = choose(anatomy.config.planes, generator), 1.9
        if config.spatial_dims == 3:
            plane, offset = "sagittal", 0.0
        subject = _moved(subject, plane, config.size, generator)
        labels, distance = anatomy._cut(subject, plane, shape, offset, generator)
        with_skull = chance(generator, anatomy.config.with_skull)
        tissue = anatomy._strip(labels, distance, float(with_skull), generator)
        shown = tissue
        if with_skull:
            # Most scans keep the air around the head, some have it blanked out.
            shown = torch.ones_like(tissue) if chance(generator, 0.75) else labels > 0
        if config.task != "translate":
            contrast = choose(anatomy.config.contrasts, generator)
            thick, sharpness = 0.3, (0.4, 0.85)
            if config.task == "super_resolve":  # no scan is as sharp as labels are
                thick, sharpness = 0.0, (0.6, 1.1)
            painted = anatomy._paint(labels, contrast, generator)
            truth = acquired(painted, generator, thick, sharpness=sharpness)
            # A hole that reaches beyond the brain is to be filled with nothing there.
            counted = torch.ones_like(shown) if config.task == "inpaint" else shown
            return Slab(truth, tissue, shown, counted)
        source, wanted = self._contrasts(generator)
        target = config.targets[wanted]
        images = self._two_contrasts(labels, source, target, generator)
        seen = acquired(images[0], generator, thick=0.3)
        # Shading of the output could not be predicted, and nobody wants it.
        truth = acquired(images[1], generator, thick=0.0, shading=0.0)
        return Slab(truth, tissue, shown, shown, seen, wanted)

    def _contrasts(self, generator: Generator) -> tuple[str, int]:
        """Contrast of the input, and number of the target's, which is another one if it can be."""
        config = self.config
        source = config.sources[_pick(len(config.sources), generator)]
        others = [n for n, name in enumerate(config.targets) if name != source]
        others = others or list(range(len(config.targets)))
        return source, others[_pick(len(others), generator)]

    def _two_contrasts(
        self, labels: Tensor, source: str, target: str, generator: Generator
    ) -> list[Tensor]:
        """The same tissues and the same lesions, painted twice."""
        anatomy = self.anatomy
        assert anatomy is not None
        tissue = (anatomy.white | anatomy.grey)[labels]
        healthy = chance(generator, anatomy.config.healthy_fraction) or not tissue.any()
        lesions = [] if healthy else anatomy._lesions(labels, tissue, generator)
        spill = chance(generator, 0.3)
        amount = uniform(generator, anatomy.config.faintest_lesion, 0.9)
        # Vessels, and core, rim and texture of a lesion, are the same in both.
        seeds = torch.randint(2**31, (2,), generator=generator).tolist()
        images = []
        for contrast in (source, target):
            vessels, painter = (torch.Generator().manual_seed(seed) for seed in seeds)
            image = anatomy._paint(labels, contrast, generator, vessels)
            sign = LESION_SIGN.get(contrast, 1.0 if chance(generator, 0.5) else -1.0)
            bounds = None if spill else tissue
            image, _ = paint_lesions(image, lesions, bounds, sign * amount, painter)
            images.append(image)
        return images

    def _real(self, generator: Generator, *, held_out: bool) -> Slab:
        """A patch of a real scan."""
        assert self.images is not None
        scans = (self.images.held_out if held_out else None) or self.images.training
        slices = 1 if self.images.flat else self.config.slices_per_slab
        truth, inside = self.images.patch(scans, self._shape(slices), generator)
        everywhere = torch.ones_like(inside)
        return Slab(truth - truth.min(), inside, everywhere, inside, real=True)

    # The damage.

    def _parts(self, slab: Slab, generator: Generator) -> list[dict[str, Tensor]]:
        """The examples of one slab: 2-D images with their neighbours as channels, or the volume."""
        config = self.config
        # All noise and all scaling refers to the range of the image that is damaged.
        clean = slab.truth if slab.source is None else slab.source
        low, high = value_range(clean, slab.tissue)
        image = clean / (high - low)
        truth = slab.truth / (high - low)
        if config.task == "denoise":
            image = self._artefacts(image, generator)
        if config.task == "super_resolve":
            image = self._coarse(image, generator)
        elif not (config.task == "inpaint" and slab.real):
            image = random_noise(image, self.noise, generator)
        if config.task == "inpaint":
            return self._holed(slab, image, generator)
        low, high = value_range(image, slab.tissue)
        if slab.source is not None:  # a contrast of its own has a scale of its own
            lowest, highest = value_range(truth, slab.tissue)
            truth = low + (truth - lowest) / (highest - lowest) * (high - low)
        image, truth = ((each - low) / (high - low) * slab.shown for each in (image, truth))
        planes = [image]
        if config.task == "translate" and len(config.targets) > 1:
            ones = torch.ones_like(image)
            planes += [ones * (n == slab.wanted) for n in range(len(config.targets))]
        return self._examples(planes, truth, slab.counted)

    def _holed(self, slab: Slab, image: Tensor, generator: Generator) -> list[dict[str, Tensor]]:
        """Examples with holes that are filled as they are in use."""
        config = self.config
        places = [(part.start + part.stop) // 2 for part in self._cuts(len(image))]
        if config.spatial_dims == 3:
            count = config.holes_per_volume
            places = [len(image) * (2 * n + 1) // (2 * count) for n in range(count)]
        hole = cut_holes(
            slab.tissue, places, config.holes, config.spacing_mm, config.largest_hole, generator,
            None if self.anatomy is None else self.anatomy.shapes,
        )  # fmt: skip
        low, high = value_range(image, slab.tissue & ~hole)
        image = image * slab.shown
        # A scan's blank surroundings become 0; in a hole they keep the value they have in the scan.
        visible = slab.shown | hole
        filled, truth = (
            (each - low) / (high - low) * visible for each in (fill(image, hole), image)
        )
        return self._examples([filled, hole.float()], truth, hole & slab.counted)

    def _cuts(self, depth: int) -> list[slice]:
        """Which slices of a slab the examples hold."""
        config = self.config
        if config.spatial_dims == 3:
            return [slice(0, depth)]
        margin = self._margin()
        room = depth - 2 * margin - config.input_slices
        starts = range(margin, margin + room + 1, config.slice_stride)
        return [slice(start, start + config.input_slices) for start in starts]

    def _examples(
        self, planes: Sequence[Tensor], target: Tensor, mask: Tensor
    ) -> list[dict[str, Tensor]]:
        """The examples of a finished slab: all ``(D, H, W)``, ``planes`` the input's channels."""
        stacked, examples = torch.stack(list(planes)), []
        for bounds in self._cuts(len(target)):
            if self.config.spatial_dims == 3:
                image, truth, counts = stacked, target, mask
            else:
                image = stacked[:, bounds].transpose(0, 1).flatten(0, 1)
                middle = (bounds.start + bounds.stop) // 2
                truth, counts = target[middle], mask[middle]
            examples.append({"image": image, "target": truth[None], "mask": counts[None].float()})
        return examples

    def _artefacts(self, image: Tensor, generator: Generator) -> Tensor:
        """The image as a moving head or an uneven coil leaves it, if that is asked for."""
        config = self.config
        if config.shading[1]:
            strength = uniform(generator, *config.shading)
            image = image * bias_field(tuple(image.shape), strength, generator)
        if config.motion and chance(generator, config.motion):
            moves = 1 + _pick(3, generator)
            image = motion(image, moves, rotation=2.0, shift=1.5, generator=generator)
        return image

    def _coarse(self, image: Tensor, generator: Generator) -> Tensor:
        """Seen by large voxels, with noise, and brought back to the fine grid as in use."""
        config = self.config
        factors = config.factors[_pick(len(config.factors), generator)]
        axes = [
            None
            if factor == 1 or size == 1
            else patch_axis(size, factor, uniform(generator, *config.psf), generator)
            for size, factor in zip(image.shape, factors, strict=True)
        ]
        for axis, item in enumerate(axes):
            if item is not None:
                image = along(image, item.down, axis - image.ndim)
        measured = random_noise(image, self.noise, generator)
        return refined_start(measured, axes, float((measured - image).std()))


def value_range(image: Tensor, tissue: Tensor) -> tuple[float, float]:
    """The 1st and 99th percentile in the tissue, of a sample that is enough; never equal."""
    # An odd step walks through all columns of the image.
    step = max(1, image.numel() // 16_000) | 1
    values = image.reshape(-1)[::step][tissue.reshape(-1)[::step]]
    if len(values) < 200:
        values = image[tissue] if tissue.any() else image.flatten()
    ordered = values.sort().values
    low, high = (float(ordered[round(part * (len(ordered) - 1))]) for part in PERCENTILES)
    return low, max(high, low + 1e-3)


def _moved(subject: Subject, plane: str, size: Sequence[int], generator: Generator) -> Subject:
    """The subject as if its middle were elsewhere, so that small images see all of the brain.

    ``size`` is that of a volume, or of a slice in the ``plane``, which lies anywhere along its
    normal already.
    """
    sizes = torch.full((3,), math.inf)
    for axis, wanted in zip(PLANES[plane][-len(size) :], size, strict=True):
        sizes[axis] = wanted
    # An even ball of radius R has the standard deviation R / sqrt(5) along each axis.
    room = (2.2 * subject.reach - sizes / 2).clamp(min=0)
    shift = room * (2 * torch.rand(3, generator=generator) - 1)
    return subject._replace(centre=subject.centre + shift)


def _pick(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _anatomy(config: RestorationConfig, given: dict[str, Any]) -> AnatomySource:
    """The source that draws anatomy, its shared settings taken from ``config``."""
    values = dict(given)
    kind = values.pop("kind", "label_maps")
    if kind not in ANATOMY:
        raise InputError(f"data.anatomy.kind must be one of {', '.join(ANATOMY)}, got {kind!r}")
    shared = {key: getattr(config, key) for key in (*SHARED, "spacing_mm")}
    outside = "prior" if config.task == "translate" else "random"
    usual = {"with_skull": 0.5, "healthy_fraction": 0.4, "outside": outside}
    cls: Any = ANATOMY[kind]
    source: AnatomySource = cls(_checked(cls.Config, usual | values, shared, "data.anatomy"))
    return source


def _real_scans(config: RestorationConfig, given: dict[str, Any]) -> RealScans:
    """The real scans, resampled to the voxel size of the images."""
    shared = {"seed": config.seed}
    values = {"spacing_mm": config.spacing_mm} | given
    return RealScans(_checked(RealScansConfig, values, shared, "data.images"))


def _checked(cls: Any, values: dict[str, Any], shared: dict[str, Any], where: str) -> Any:
    """Settings of a part, with those that are shared; an InputError says which one is wrong."""
    twice = sorted(set(values) & set(shared))
    if twice:
        raise InputError(f"{where}.{twice[0]} must be set as data.{twice[0]}")
    try:
        return cls.model_validate({**values, **shared})
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in (where, *problem["loc"]))
        raise InputError(f"{key}: {problem['msg']}") from error
