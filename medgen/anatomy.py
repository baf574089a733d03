"""Synthesised anatomy: training images drawn, without end, from anatomical label maps.

Every tissue gets a random intensity (after T1-, T2- or FLAIR-like priors, or fully random), then
the image gets what scanners add: texture, bias field, limited resolution, thick slices, noise and
an imperfect skull strip. The idea follows Billot et al., SynthSeg (Med Image Anal 86:102789, 2023).
Lesions from :mod:`medgen.corruption` are painted in *before* the resolution is degraded, so their
borders look like everything else in the image.

A source is a pure function of its settings and a batch number: ``source.batch(i)`` gives the same
tensors in any process, in any order, so training can resume exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional as F

from medgen.anatomy_settings import AnatomyConfig, PhantomConfig
from medgen.corruption import (
    Lesion,
    LesionShapes,
    blob,
    chance,
    gaussian_blur,
    paint_lesions,
    random_rotation,
    random_voxel,
    smooth_noise,
    uniform,
)
from medgen.errors import InputError, LeakageError
from medgen.label_maps import (
    CORTEX,
    DEEP_GREY,
    FLUID,
    VENTRICLES,
    WHITE_MATTER,
    brain_distance_mm,
    read_label_maps,
)

# Mean intensity of white matter, cortex, deep grey and fluid; 1 is the brightest tissue.
PRIORS = {
    "t1": (0.90, 0.62, 0.74, 0.22),
    "t2": (0.38, 0.52, 0.45, 1.00),
    "flair": (0.60, 0.74, 0.68, 0.18),
}
# The same for what lies around the brain, for T1, T2 and FLAIR; each head varies by OUTSIDE_SPREAD.
OUTSIDE_PRIORS = {
    502: (0.30, 0.15, 0.20),  # arteries: flowing blood
    506: (0.22, 1.00, 0.20),  # vitreous body
    507: (0.85, 0.65, 0.60),  # scalp and other soft tissue, much of it fat
    508: (0.50, 0.40, 0.50),  # around the eyes
    509: (0.55, 0.85, 0.75),  # mucosa
    511: (0.12, 0.10, 0.12),  # skull
    512: (0.85, 0.40, 0.60),  # spinal cord
    514: (0.35, 0.20, 0.25),  # venous sinuses
    515: (0.10, 0.08, 0.10),  # compact bone
    516: (0.75, 0.50, 0.50),  # marrow
    530: (0.80, 0.40, 0.58),  # optic nerves
}
OUTSIDE_SPREAD = 0.08
# Sign of a lesion's intensity difference; a sequence that is not listed draws either sign.
LESION_SIGN = {"t1": -1.0, "t2": 1.0, "flair": 1.0}
# These become 0 and 1, as in medgen.preparation; packing compares them.
PERCENTILES = (0.01, 0.99)
# A lesion counts as visible where it changes the image by this part of the intensity range.
LEAST_VISIBLE = 0.04
# In-plane and through-plane array axes of a slab (D, H, W) cut from a volume (X, Y, Z).
PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}


class Subject(NamedTuple):
    """One anatomy ``(X, Y, Z)``.

    ``labels`` holds tissue indices, ``distance`` quarter millimetres to the brain's surface
    (negative inside), ``centre`` and ``reach`` (3,) the brain's mean position and its spread.
    """

    labels: Tensor
    distance: Tensor
    centre: Tensor
    reach: Tensor


def normalise(image: Tensor, mask: Tensor, reference: Tensor | None = None) -> Tensor:
    """Scale so that the 1st and 99th percentile inside the mask become 0 and 1; clip to 0..1.5.

    The same rule as :class:`medgen.preparation.Preparation`. ``reference`` gives the percentiles
    if it is not the image itself. Outside the mask the result is 0.
    """
    low, high = percentiles(image if reference is None else reference, mask)
    scaled = (image - low) / (high - low).clamp(min=1e-3)
    return scaled.clamp(0.0, 1.5) * mask


def percentiles(image: Tensor, mask: Tensor) -> Tensor:
    """The 1st and 99th percentile inside the mask; of a sample, which is enough."""
    inside = image[mask]
    inside = inside[:: max(1, len(inside) // 20_000)]
    return torch.quantile(inside, torch.tensor(PERCENTILES))


class AnatomySource:
    """Draws training batches from label maps.

    Args:
        config: Settings of the generator.
        maps: Label maps ``(X, Y, Z)`` with FreeSurfer labels, axes right, front, up.
        validation_maps: Label maps for :meth:`validation_batch`.
    """

    def __init__(
        self,
        config: AnatomyConfig,
        maps: Sequence[NDArray[Any]],
        validation_maps: Sequence[NDArray[Any]],
    ) -> None:
        self.config = config
        values = sorted({int(v) for labels in (*maps, *validation_maps) for v in np.unique(labels)})
        self.values = values
        lookup = np.zeros(max(values) + 1, dtype=np.uint8)
        lookup[values] = np.arange(len(values))
        self.subjects = [self._subject(labels, lookup) for labels in maps]
        self.validation_subjects = [self._subject(labels, lookup) for labels in validation_maps]
        self.shapes = LesionShapes(config.lesions) if config.lesions else None
        self.ventricle = torch.tensor([value in VENTRICLES for value in values])
        self.white = torch.tensor([value in WHITE_MATTER for value in values])
        self.fluid = torch.tensor([value in FLUID for value in values])
        self.grey = torch.tensor([value in CORTEX + DEEP_GREY for value in values])

    def _subject(self, labels: NDArray[Any], lookup: NDArray[np.uint8]) -> Subject:
        distance = brain_distance_mm(labels, self.config.spacing_mm)
        # Quarter millimetres in one byte keep many subjects in memory.
        coarse = np.clip(np.round(distance * 4), -127, 127).astype(np.int8)
        inside = np.argwhere(distance < 0)
        return Subject(
            torch.from_numpy(lookup[labels]),
            torch.from_numpy(coarse),
            torch.from_numpy(inside.mean(0)).float(),
            torch.from_numpy(inside.std(0)).float(),
        )

    def batch(self, index: int) -> dict[str, Tensor]:
        """Training batch number ``index``; see :func:`_stack` for its content."""
        return self._batch(self.subjects, 2 * index)

    def validation_batch(self, index: int) -> dict[str, Tensor]:
        """Batch number ``index`` from the held-out subjects only."""
        return self._batch(self.validation_subjects or self.subjects, 2 * index + 1)

    def _batch(self, subjects: Sequence[Subject], number: int) -> dict[str, Tensor]:
        config = self.config
        generator = batch_generator(config.seed, number)
        per_slab = config.slices_per_slab if config.spatial_dims == 2 else 1
        slabs = [
            self.draw(
                subjects[int(torch.randint(len(subjects), (), generator=generator))], generator
            )
            for _ in range(math.ceil(config.batch_size / per_slab))
        ]
        if config.spatial_dims == 3:
            parts = [{name: image[None] for name, image in slab.items()} for slab in slabs]
        else:
            parts = [part for slab in slabs for part in self._slices(slab)]
        parts = parts[: config.batch_size]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def _slices(self, slab: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """2-D images with their neighbours as channels, cut at regular places of the slab."""
        config = self.config
        half = config.input_slices // 2
        parts = []
        for number in range(config.slices_per_slab):
            middle = half + number * config.slice_stride
            part = {name: image[middle][None] for name, image in slab.items()}
            part["image"] = slab["image"][middle - half : middle + half + 1]
            parts.append(part)
        return parts

    def draw(self, subject: Subject, generator: Generator) -> dict[str, Tensor]:
        """One slab (D, H, W): ``image`` with lesions, ``healthy``, ``anomaly`` and ``mask``."""
        config = self.config
        if config.spatial_dims == 3:
            plane, shape = "sagittal", tuple(config.size)
            offset = None
        else:
            plane = choose(config.planes, generator)
            depth = (config.slices_per_slab - 1) * config.slice_stride + config.input_slices
            shape = (depth, *config.size)
            offset = 1.9
        labels, distance = self._cut(subject, plane, shape, offset, generator)
        contrast = choose(config.contrasts, generator)
        healthy = self._paint(labels, contrast, generator)
        mask = self._strip(labels, distance, config.with_skull, generator)
        damaged, anomaly = self._damage(healthy, labels, contrast, generator)
        image, healthy, clean = scan(damaged, healthy, mask, generator)
        # What resolution and contrast have made invisible cannot be learnt, only guessed.
        low, high = percentiles(image, mask)
        seen = (clean - healthy).abs() > LEAST_VISIBLE * (high - low)
        anomaly = (anomaly > 0.5) & seen & mask
        return {
            "image": normalise(image, mask),
            "healthy": normalise(healthy, mask, reference=image),
            "anomaly": anomaly.float(),
            "mask": mask.float(),
        }

    def healthy_scan(self, index: int, contrast: str) -> tuple[NDArray[np.float32], Any]:
        """A whole skull-stripped scan without lesions or thick slices from a held-out subject.

        Args:
            index: Number of the scan; scans take the held-out subjects in turn.
            contrast: ``t1``, ``t2``, ``flair`` or ``random``.

        Returns:
            The image (X, Y, Z), 0 outside the brain, and its 4x4 voxel-to-RAS+ mm affine.

        Raises:
            InputError: If no subject was held out.
        """
        if not self.validation_subjects:
            msg = "no subject is held out: set data.validation_subjects"
            raise InputError(msg)
        subject = self.validation_subjects[index % len(self.validation_subjects)]
        generator = batch_generator(self.config.seed, index, stream=2)
        shape = tuple(size + 4 for size in subject.labels.shape)
        labels, distance = self._cut(subject, "sagittal", shape, None, generator)
        healthy = self._paint(labels, contrast, generator)
        mask = self._strip(labels, distance, 0.0, generator)
        image, *_ = scan(healthy, healthy, mask, generator, thick_slices=0.0)
        affine = np.diag([self.config.spacing_mm] * 3 + [1.0])
        return (image.clamp(min=1e-3) * mask).numpy(), affine

    @staticmethod
    def _strip(labels: Tensor, distance: Tensor, with_skull: float, generator: Generator) -> Tensor:
        """The brain as an imperfect skull strip leaves it, or with some chance the whole head."""
        if chance(generator, with_skull):
            mask = labels > 0
        else:
            surface = uniform(generator, -1.0, 1.0) + uniform(generator, 0.0, 4.0)
            ragged = uniform(generator, 0.0, 1.5) * smooth_noise(tuple(labels.shape), 8, generator)
            mask = distance < surface + ragged
        # A slab beside the brain has nothing to strip.
        return mask if mask.sum() >= 100 else labels >= 0

    def _cut(
        self,
        subject: Subject,
        plane: str,
        shape: tuple[int, ...],
        offset: float | None,
        generator: Generator,
    ) -> tuple[Tensor, Tensor]:
        """Labels and surface distance (mm) on a turned, scaled, bent slab through the subject.

        ``offset`` is how far the slab may lie from the brain's middle along its normal, in
        standard deviations of the brain; None keeps it near the middle.
        """
        axes = [torch.arange(size) - (size - 1) / 2 for size in shape]
        lattice = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        # From slab order (D, H, W) to anatomical order (X, Y, Z).
        points = torch.empty_like(lattice)
        for slab_axis, volume_axis in enumerate(PLANES[plane]):
            points[..., volume_axis] = lattice[..., slab_axis]
        turn = _small_rotation(uniform(generator, 0, 0.25), generator)
        scale = torch.exp(0.1 * torch.randn(3, generator=generator).clamp(-2, 2))
        if chance(generator, 0.5):
            scale[0] = -scale[0]
        points = (points @ turn) * scale
        bend = uniform(generator, 0.0, 2.5)
        for axis in range(3):
            points[..., axis] += bend * smooth_noise(shape, 22, generator)
        spread = 0.15 * torch.randn(3, generator=generator)
        if offset is not None:
            spread[PLANES[plane][0]] = uniform(generator, -offset, offset)
        index = (points + subject.centre + spread * subject.reach).round().long()
        limits = torch.tensor(subject.labels.shape)
        valid = ((index >= 0) & (index < limits)).all(-1)
        index = torch.minimum(index.clamp(min=0), limits - 1)
        flat = (index[..., 0] * limits[1] + index[..., 1]) * limits[2] + index[..., 2]
        labels = subject.labels.flatten()[flat].long() * valid
        distance = torch.where(valid, subject.distance.flatten()[flat].float() / 4, 30.0)
        return labels, distance

    def _paint(
        self,
        labels: Tensor,
        contrast: str,
        generator: Generator,
        distractors: Generator | None = None,
    ) -> Tensor:
        """Healthy intensities (D, H, W): a mean and a texture for every label.

        ``distractors`` draws vessels and choroid plexus, if two contrasts are to share them.
        """
        means = torch.rand(len(self.values), generator=generator) * 1.2
        jitter = 0.03 * torch.randn(len(self.values), generator=generator)
        tissues = torch.rand(4, generator=generator) * 1.1
        if contrast != "random":
            prior = torch.tensor(PRIORS[contrast])
            tissues = prior + 0.07 * torch.randn(4, generator=generator)
        for tissue, names in enumerate((WHITE_MATTER, CORTEX, DEEP_GREY, FLUID)):
            for name in names:
                if name in self.values:
                    # Left and right share a mean: the first of each pair decides.
                    where = self.values.index(name)
                    means[where] = tissues[tissue] + jitter[where]
        for left, right in zip((2, 3, 4, 5, 7, 8), (41, 42, 43, 44, 46, 47), strict=True):
            if left in self.values and right in self.values:
                means[self.values.index(right)] = means[self.values.index(left)]
        if self.config.outside == "prior" and contrast != "random":
            column = list(PRIORS).index(contrast)
            for label, levels in OUTSIDE_PRIORS.items():
                if label in self.values:
                    own = levels[column] + OUTSIDE_SPREAD * torch.randn((), generator=generator)
                    means[self.values.index(label)] = own
        means[0] = uniform(generator, 0, 0.05)
        image = means.clamp(min=0)[labels]
        shape = tuple(labels.shape)
        grain = uniform(generator, 2.0, 8.0)
        texture = smooth_noise(shape, grain, generator) * uniform(generator, 0.0, 0.05)
        image = (
            image + texture + uniform(generator, 0, 0.04) * torch.randn(shape, generator=generator)
        )
        # Grey matter is not equally bright everywhere (insula, hippocampus, motor strip).
        regional = smooth_noise(shape, 15, generator) * uniform(generator, 0.0, 0.08)
        image = torch.where(self.grey[labels], image + regional, image)
        if distractors is not None and contrast == "flair":
            uniform(distractors, -1, 1)  # the sign of other contrasts' rims: the rest stays in step
        return self._healthy_distractors(image, labels, contrast, distractors or generator)

    def _healthy_distractors(
        self, image: Tensor, labels: Tensor, contrast: str, generator: Generator
    ) -> Tensor:
        """What is normal but looks odd: ventricular rims, choroid plexus, vessels in the sulci."""
        ventricle = self.ventricle[labels].float()
        rim = F.avg_pool3d(ventricle[None, None], 3, stride=1, padding=1)[0, 0] * (1 - ventricle)
        sign = 1.0 if contrast == "flair" else uniform(generator, -1, 1)
        image = image + sign * uniform(generator, 0.0, 0.35) * rim
        shape = tuple(labels.shape)
        plexus = smooth_noise(shape, 4, generator) > uniform(generator, 1.0, 2.5)
        level = uniform(generator, 0.2, 1.0)
        image = torch.where(plexus & (ventricle > 0), level, image)
        fluid = self.fluid[labels] & (ventricle == 0)
        vessels = torch.rand(shape, generator=generator) < uniform(generator, 0.0, 0.06)
        return torch.where(vessels & fluid, uniform(generator, 0.0, 1.3), image)

    def _damage(
        self, healthy: Tensor, labels: Tensor, contrast: str, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Paint lesions; gives the damaged image and the opacity of all lesions (D, H, W)."""
        tissue = (self.white | self.grey)[labels]
        if chance(generator, self.config.healthy_fraction) or not tissue.any():
            return healthy.clone(), torch.zeros_like(healthy)
        sign = LESION_SIGN.get(contrast, 1.0 if chance(generator, 0.5) else -1.0)
        if chance(generator, 0.1):
            sign = -sign
        difference = sign * uniform(generator, self.config.faintest_lesion, 0.9)
        spill = chance(generator, 0.3)  # some lesions do not stop at the ventricle or the sulcus
        lesions = self._lesions(labels, tissue, generator)
        return paint_lesions(healthy, lesions, None if spill else tissue, difference, generator)

    def _lesions(self, labels: Tensor, tissue: Tensor, generator: Generator) -> list[Lesion]:
        """Many small, one or two real shapes, or one large lesion."""
        shape = tuple(labels.shape)
        white = self.white[labels]
        anywhere = tissue.flatten().nonzero()[:, 0]
        in_white = white.flatten().nonzero()[:, 0] if white.any() else anywhere

        def seed(candidates: Tensor) -> tuple[int, int, int]:
            return random_voxel(candidates, shape, generator)

        kind = uniform(generator, 0, 1)
        if kind < 0.5:
            count = 1 + int(uniform(generator, 0, 24))
            mean_radius = uniform(generator, 1.4, 4.0)
            return [
                blob(
                    seed(in_white if chance(generator, 0.8) else anywhere),
                    mean_radius * math.exp(0.35 * float(torch.randn((), generator=generator))),
                    shape,
                    generator,
                )
                for _ in range(count)
            ]
        if kind < 0.75 and self.shapes is not None:
            return [
                self.shapes.place(
                    seed(anywhere), shape, self.config.spacing_mm, generator, largest=60
                )
                for _ in range(1 + int(chance(generator, 0.3)))
            ]
        return [blob(seed(anywhere), uniform(generator, 4.0, 15.0), shape, generator)]


def batch_generator(seed: int, number: int, stream: int = 0) -> Generator:
    """The randomness of one batch or scan; streams never share it."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number + stream * 2**40)


def scan(
    damaged: Tensor,
    healthy: Tensor,
    mask: Tensor,
    generator: Generator,
    thick_slices: float = 0.4,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bias field, limited resolution and noise.

    Returns:
        The damaged image, the healthy target and the damaged image without noise.
    """
    shape = tuple(damaged.shape)
    sharp = uniform(generator, 0.4, 0.9)
    sigmas = [sharp * uniform(generator, 0.7, 1.3) for _ in range(3)]
    if chance(generator, thick_slices):  # along any axis of the original scan
        sigmas[int(torch.randint(3, (), generator=generator))] += uniform(generator, 0.5, 1.8)
    field = torch.exp(uniform(generator, 0, 0.2) * smooth_noise(shape, 45, generator))
    noise = torch.randn(shape, generator=generator)
    if chance(generator, 0.5):  # resampled scans have noise with a grain
        noise = gaussian_blur(noise, (0.6, 0.6, 0.6)) * 2.5
    gamma = math.exp(0.15 * float(torch.randn((), generator=generator)))
    image = (gaussian_blur(damaged, sigmas) * field).clamp(min=1e-4) ** gamma
    target = (gaussian_blur(healthy, sigmas) * field).clamp(min=1e-4) ** gamma
    return image + noise * uniform(generator, 0.0, 0.04), target, image


def _small_rotation(angle: float, generator: Generator) -> Tensor:
    """A rotation by ``angle`` radians about a random axis."""
    axis = random_rotation(generator)[0]
    cross = torch.zeros(3, 3)
    cross[0, 1], cross[0, 2], cross[1, 2] = -axis[2], axis[1], -axis[0]
    return torch.linalg.matrix_exp(angle * (cross - cross.T))


def choose(weights: dict[Any, float], generator: Generator) -> Any:
    """A key, with probability in proportion to its weight."""
    names = list(weights)
    pick = torch.multinomial(torch.tensor([weights[n] for n in names]), 1, generator=generator)
    return names[int(pick)]


class LabelMapSource(AnatomySource):
    """Training data from a folder of label maps.

    Raises:
        LeakageError: If a subject is in both the training and the validation list.
        InputError: If label maps are missing.
    """

    Config = AnatomyConfig

    def __init__(self, config: AnatomyConfig) -> None:
        both = sorted(set(config.subjects) & set(config.validation_subjects))
        if both:
            msg = f"subjects {both} are in both subjects and validation_subjects"
            raise LeakageError(msg, "Put every subject into one of the two lists.")
        if config.folder is None:
            msg = "data.folder is not set: training from label maps needs their folder"
            raise InputError(msg)
        names = config.subjects
        if not names:
            stems = sorted(file.name.split(".")[0] for file in config.folder.glob("*.nii*"))
            names = tuple(stem for stem in stems if stem not in config.validation_subjects)
        held_out = config.validation_subjects
        self.subject_names = names
        training = read_label_maps(config.folder, names, config.spacing_mm)
        validation = read_label_maps(config.folder, held_out, config.spacing_mm) if held_out else []
        super().__init__(config, training, validation)


class PhantomSource(AnatomySource):
    """Training data from :mod:`medgen.phantoms`: for tests, examples and first tries."""

    Config = PhantomConfig

    def __init__(self, config: PhantomConfig) -> None:
        from medgen.phantoms import brain

        heads = [
            brain(config.shape, spacing_mm=config.spacing_mm, seed=seed, skull=True).labels
            for seed in range(config.heads + 1)
        ]
        super().__init__(config, heads[:-1], heads[-1:])
