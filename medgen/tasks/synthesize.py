"""Synthesize: images of the conditions asked for, from a model and a seed.

Image ``i`` of a seed is the same however many are made, and bit for bit on the same machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.devices import check_device_name, resolve_device
from medgen.errors import InputError
from medgen.package import ModelPackage
from medgen.run_record import timed
from medgen.tasks.conditions import find_model, resolve_conditions
from medgen.tasks.label_folders import read_label_maps
from medgen.tasks.latents import Code, Sample, check_seed, draw
from medgen.tasks.running import Progress
from medgen.tasks.sampling import Made, render

MOST_IMAGES = 100_000
# A machine without a GPU makes a few 64-pixel images a second.
SLOW_IMAGES_PER_S = 5.0


@dataclass(frozen=True)
class Request:
    """What is asked of a model, checked; nothing is computed yet and torch is not needed.

    Attributes:
        package: The model.
        conditions: Numbers of the conditions, made in turn; ``(None,)`` if it has none.
        seed: Of the latents.
        truncation: How far latents are pulled towards the mean; 1 is not at all.
        chosen: Whether the model was chosen by its conditions, not named.
    """

    package: ModelPackage
    conditions: tuple[int | None, ...]
    seed: int
    truncation: float
    chosen: bool = False

    def condition_name(self, number: int | None) -> str | None:
        """Name of a condition."""
        return None if number is None else self.package.synthesis.condition_names[number]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, *spatial)`` of its images."""
        config = self.package.manifest.config
        return (config["channels"], *config["image_size"])

    @property
    def annotated(self) -> bool:
        """Whether its images come with label maps."""
        return bool(self.package.synthesis.label_names)


def request(
    model: str | Path | ModelPackage | None = None,
    conditions: Sequence[str] = (),
    *,
    contrast: str | None = None,
    seed: int = 0,
    truncation: float | None = None,
) -> Request:
    """Check what is asked for, and find the model if none is named.

    Args:
        model: Name or folder of a model, or one that is loaded; by default the only one that has
            the conditions.
        conditions: ``name`` or ``name:attribute``; by default all that the model has, in turn.
        contrast: Only conditions with this attribute.
        seed: From 0 to 2**32 - 1.
        truncation: From 0 to 1; by default the model's own.

    Raises:
        InputError: Unknown or ambiguous condition, or a number out of range.
    """
    check_seed(seed)
    if truncation is not None and not 0 <= truncation <= 1:
        raise InputError(f"the truncation must be from 0 to 1, got {truncation:g}")
    package = find_model(model, conditions, contrast)
    numbers = resolve_conditions(package, conditions, contrast)
    used = package.synthesis.default_truncation if truncation is None else truncation
    return Request(package, numbers, seed, used, chosen=model is None)


def check_number(wish: Request, n: int, where: Path | None = None) -> int:
    """Refuse a number of images that cannot be meant, or that the disk cannot hold.

    Args:
        wish: The images.
        n: How many.
        where: Folder they will be written to, if they will.

    Returns:
        About how many bytes they take on disk.

    Raises:
        InputError: It is less than 1, more than ``MOST_IMAGES``, or more than the disk holds.
    """
    if n < 1:
        raise InputError(f"-n must be at least 1, got {n}")
    latent = 12 * int(wish.package.manifest.config.get("latent", 0))  # as text, in the manifest
    size = n * (prod(wish.image_shape) * (2 if wish.annotated else 1) + latent + 1500)
    if n > MOST_IMAGES:
        hours = n / SLOW_IMAGES_PER_S / 3600
        msg = (
            f"-n {n} is more than {MOST_IMAGES}: about {size / 1e9:.1f} GB, and up to "
            f"{hours:.0f} hours without a GPU"
        )
        raise InputError(msg, "Make several folders, each with its own --seed.")
    if where is not None:
        there = next(p for p in (where, *where.absolute().parents) if p.is_dir())
        free = shutil.disk_usage(there).free
        if size > free:
            msg = f"{n} images need about {size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free"
            raise InputError(msg, "Make fewer, or choose another disk with -o.")
    return size


@dataclass(frozen=True, eq=False)
class Maker:
    """A request with its network ready.

    Attributes:
        wish: What is asked for.
        method: The network, on its device.
        device: Where it computes.
    """

    wish: Request
    method: Any
    device: str

    def drawn(self, index: int, condition: int | None) -> Code:
        """The code of image ``index`` of the seed."""
        return Code(draw(self.method.latent_shape, self.wish.seed, index), "z", condition)

    def sample(
        self, index: int, code: Code, name: str, *, seed: int | None = None, **details: Any
    ) -> Sample:
        """An image to be made from a code."""
        truncation = self.wish.truncation if code.space == "z" else 1.0
        condition = details.pop("condition", self.wish.condition_name(code.condition))
        return Sample(index, code, name, condition, seed, truncation, details)


def load(wish: Request, device: str = "auto") -> Maker:
    """Load the network of a request.

    Raises:
        InputError: The device is unknown or absent, or the package does not fit its method.
    """
    check_device_name(device)
    where = resolve_device(device)
    method: Any = wish.package.method()
    return Maker(wish, method.to(where), where)


@dataclass(frozen=True, eq=False)
class Synthesis:
    """Images to be made: each time it is iterated over, they are computed.

    Attributes:
        maker: The model and what is asked of it.
        count: How many images.
        samples: Gives what each is made from, in order.
        columns: Of the contact sheet, if the images have an order in the plane.
        signs: Sign before each image of an equation, if they are one.
        notes: What was done on the way, for people.
        fallbacks: What could not be done as wished, and what was done instead.
        timings: Seconds of each step.
        inputs: Files that were read.
    """

    maker: Maker
    count: int
    samples: Callable[[], Iterable[Sample]]
    columns: int | None = None
    signs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    inputs: tuple[Path, ...] = ()

    @property
    def package(self) -> ModelPackage:
        """The model."""
        return self.maker.wish.package

    def blocks(self) -> Iterator[list[Made]]:
        """The images, as many at once as are computed at once."""
        return render(self.maker.method, self.samples(), self.maker.device)

    def __iter__(self) -> Iterator[Made]:
        for block in self.blocks():
            yield from block

    def images(self) -> NDArray[np.uint8]:
        """All images ``(N, C, *spatial)`` in 8 bits."""
        return np.stack([made.pixels() for made in self])

    def save(
        self,
        folder: str | Path,
        *,
        format: str | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Path]:
        """Write images, label maps, ``manifest.jsonl``, contact sheet and gallery, all or nothing.

        Args:
            folder: Made if absent.
            format: ``png`` (default for pictures), ``nifti`` (default for volumes) or ``dicom``.
            overwrite: Replace the outputs of an earlier run.
            progress: Called with (done, total) images.

        Returns:
            The path of each output by what it is.

        Raises:
            InputError: An output exists, the folder cannot be written, or the format cannot hold
                such images.
        """
        from medgen.tasks.synthesize_files import save_synthesis

        return save_synthesis(
            self, Path(folder), format=format, overwrite=overwrite, progress=progress
        )


def synthesize(
    model: str | Path | ModelPackage | None = None,
    *,
    conditions: str | Sequence[str] = (),
    n: int = 16,
    contrast: str | None = None,
    seed: int = 0,
    truncation: float | None = None,
    masks: str | Path | None = None,
    device: str = "auto",
) -> Synthesis:
    """Make images.

    Args:
        model: Name or folder of a model; by default the only one that has the conditions.
        conditions: One or several, ``name`` or ``name:attribute``; images take them in turn. By
            default all that the model has.
        n: How many images; with ``masks``, how many at most.
        contrast: Only conditions with this attribute.
        seed: Same seed, same images.
        truncation: From 0 (all alike) to 1 (as varied as in training).
        masks: Folder of label maps to paint, one image each, instead of those the model makes.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda[:N]`` or ``mps``.

    Returns:
        The images, computed when they are iterated over or saved.

    Raises:
        InputError: The model, the conditions or a number cannot be used; says why and what to do.

    Examples:
        >>> made = medgen.synthesize(conditions="cancer", n=64)
        >>> made.save("out")
    """
    check_device_name(device)
    wanted = (conditions,) if isinstance(conditions, str) else tuple(conditions)
    wish = request(model, wanted, contrast=contrast, seed=seed, truncation=truncation)
    return run(wish, n, device=device, masks=None if masks is None else Path(masks))


def run(wish: Request, n: int, *, device: str = "auto", masks: Path | None = None) -> Synthesis:
    """The images of a request.

    Raises:
        InputError: As :func:`synthesize`.
    """
    check_number(wish, n)
    timings: dict[str, float] = {}
    if masks is not None:
        maps = read_label_maps(masks, wish)[:n]
        with timed(timings, "load model"):
            maker = load(wish, device)
        samples = [_painted(maker, number, path, map_) for number, (path, map_) in enumerate(maps)]
        inputs = tuple(path for path, _ in maps)
        return Synthesis(maker, len(samples), lambda: samples, timings=timings, inputs=inputs)
    with timed(timings, "load model"):
        maker = load(wish, device)
    return Synthesis(maker, n, lambda: _in_turn(maker, n), timings=timings)


def _in_turn(maker: Maker, n: int) -> Iterator[Sample]:
    """Images 0 to n - 1 of the seed, whose conditions take turns."""
    conditions, seed = maker.wish.conditions, maker.wish.seed
    for index in range(n):
        number = conditions[index % len(conditions)]
        name = maker.wish.condition_name(number) or maker.wish.package.manifest.name
        yield maker.sample(index, maker.drawn(index, number), name, seed=seed)


def _painted(maker: Maker, index: int, path: Path, labels: NDArray[np.int64]) -> Sample:
    """An image of a given label map."""
    conditions = maker.wish.conditions
    code = maker.drawn(index, conditions[index % len(conditions)])
    code = Code(code.values, code.space, code.condition, labels)
    name = maker.wish.condition_name(code.condition) or maker.wish.package.manifest.name
    return maker.sample(index, code, name, seed=maker.wish.seed, painted=path.name)
