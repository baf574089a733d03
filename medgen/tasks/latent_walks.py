"""Pictures of a model's latent space: interpolation, grid, arithmetic, inversion of real images."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.image_sets import LUMA
from medgen.io.synthetic import read_facts
from medgen.package import ATTRIBUTES
from medgen.run_record import timed
from medgen.tasks.grids import axes_of, turned
from medgen.tasks.invert import Inverted, invert
from medgen.tasks.label_folders import files_of
from medgen.tasks.latents import (
    KNOTS,
    LARGEST_SEED,
    Code,
    Sample,
    Space,
    Vector,
    check_seed,
    check_terms,
    draw,
    evaluate,
    lattice,
    line,
    parse_expression,
)
from medgen.tasks.nearest import TrainingImages, training_images
from medgen.tasks.running import Progress
from medgen.tasks.sampling import has_styles, to_style
from medgen.tasks.synthesize import Maker, Request, Synthesis, load

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", ".dcm")
MOST_INVERTED = 256
AT_ONCE = 8  # images inverted together: gradients take memory


def interpolate(
    wish: Request, start: str, end: str, *, steps: int = 8, device: str = "auto"
) -> Synthesis:
    """Images on the way from one to another, both included.

    Args:
        wish: The model; its first condition holds for numbers.
        start: Number of an image of the seed, an image file, or (for a model with a style space)
            a condition.
        end: The same.
        steps: Number of images.
        device: Where to compute.

    Raises:
        InputError: An end is none of these, or the two cannot be mixed.
    """
    timings: dict[str, float] = {}
    with timed(timings, "load model"):
        maker = load(wish, device)
    points = _Points(maker)
    with timed(timings, "find ends"):
        codes = [points.find(start), points.find(end)]
    if has_styles(maker.method):
        codes = [to_style(maker.method, code, wish.truncation) for code in codes]
    condition = wish.condition_name(codes[0].condition)
    samples = [
        maker.sample(n, code, f"{part:.3f}", condition=condition, interpolation=round(part, 6),
                     start=points.named(start), end=points.named(end))
        for n, (part, code) in enumerate(line(codes[0], codes[1], steps))
    ]  # fmt: skip
    return Synthesis(
        maker, len(samples), lambda: samples, columns=min(steps, 16), notes=tuple(points.notes),
        timings=timings, inputs=tuple(points.files),
    )  # fmt: skip


def grid(wish: Request, *, steps: int = 3, device: str = "auto") -> Synthesis:
    """A square of images between the first nine of the seed, which stand 3 x 3.

    Args:
        wish: The model; its first condition holds for all.
        steps: Images from one of the nine to the next.
        device: Where to compute.

    Raises:
        InputError: Too many steps, or several conditions.
    """
    _require_condition(wish)
    timings: dict[str, float] = {}
    with timed(timings, "load model"):
        maker = load(wish, device)
    knots = [maker.drawn(n, wish.conditions[0]) for n in range(KNOTS * KNOTS)]
    condition = wish.condition_name(wish.conditions[0])
    if has_styles(maker.method):
        knots = [to_style(maker.method, code, wish.truncation) for code in knots]
    samples = [
        maker.sample(n, code, f"row{row:.2f}_column{column:.2f}", condition=condition,
                     grid=[round(row, 6), round(column, 6)], grid_seed=wish.seed)
        for n, ((row, column), code) in enumerate(lattice(knots, steps))
    ]  # fmt: skip
    side = (KNOTS - 1) * steps + 1
    return Synthesis(maker, len(samples), lambda: samples, columns=side, timings=timings)


def arithmetic(
    wish: Request,
    expression: str,
    *,
    sets: Mapping[str, Path] | None = None,
    device: str = "auto",
) -> Synthesis:
    """The image of each set's mean, and of their signed sum.

    Args:
        wish: The model; for one without a style space its first condition holds for all.
        expression: Such as ``"cancer:lumen - cancer:no_lumen + benign:no_lumen"``.
        sets: Folders of images by the set's name, besides those the model itself brings.
        device: Where to compute.

    Raises:
        InputError: The expression is malformed, or names a set that is not there.
    """
    terms = parse_expression(expression)
    known: dict[str, Vector] = dict(wish.package.arrays(ATTRIBUTES))
    given = dict(sets or {})
    check_terms(terms, known.keys() | given.keys())
    timings: dict[str, float] = {}
    with timed(timings, "load model"):
        maker = load(wish, device)
    points = _Points(maker)
    with timed(timings, "find sets"):
        for name in {name for _, name in terms} & given.keys():
            known[name] = np.mean([code.values for code in points.folder(given[name])], axis=0)
    space: Space = "w" if has_styles(maker.method) else "z"
    number = None if space == "w" else wish.conditions[0]
    means = [Code(known[name].astype(np.float32), space, number) for _, name in terms]
    total = Code(evaluate(terms, known), space, number)
    condition = wish.condition_name(number)
    samples = [
        maker.sample(n, code, name, condition=condition, mean_of=name)
        for n, (code, (_, name)) in enumerate(zip(means, terms, strict=True))
    ]
    samples.append(
        maker.sample(len(terms), total, "result", condition=condition, expression=expression)
    )
    signs = ["" if n == 0 and sign > 0 else "+-"[sign < 0] for n, (sign, _) in enumerate(terms)]
    return Synthesis(
        maker, len(samples), lambda: samples, columns=len(samples), signs=(*signs, "="),
        notes=tuple(points.notes), timings=timings, inputs=tuple(points.files),
    )  # fmt: skip


def invert_images(
    wish: Request,
    images: Sequence[Path],
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> Synthesis:
    """The nearest images that the model can make of given ones.

    Args:
        wish: The model; its first condition holds for all images.
        images: Files.
        device: Where to compute.
        progress: Called with (done, total) images.

    Raises:
        InputError: An image does not fit the model, or the model cannot be inverted.
    """
    refuse_annotated(wish)
    _require_condition(wish)
    pixels = [read_for(path, wish) for path in images]
    timings: dict[str, float] = {}
    with timed(timings, "load model"):
        maker = load(wish, device)
    points = _Points(maker, progress)
    with timed(timings, "invert"):
        found = points.invert(np.stack(pixels))
    samples = [_inverted_sample(maker, n, one) for n, one in enumerate(found)]
    residuals = ", ".join(f"{one.residual:.1f}" for one in found)
    imitation = "these images imitate real ones: guard them as you guard the real ones"
    notes = (
        *points.notes,
        imitation,
        f"root mean squared difference in grey steps of 255: {residuals}",
    )
    return Synthesis(
        maker, len(samples), lambda: samples, notes=notes, timings=timings, inputs=tuple(images)
    )


def _inverted_sample(maker: Maker, index: int, one: Inverted) -> Sample:
    details: dict[str, Any] = {"residual": float(f"{one.residual:.6g}")}
    if one.feature_distance is not None:
        details["feature_distance"] = float(f"{one.feature_distance:.6g}")
    condition = maker.wish.condition_name(maker.wish.conditions[0])
    return maker.sample(index, one.code, "inverted", condition=condition, **details)


class _Points:
    """Finds the codes of numbers, conditions, image files and folders."""

    def __init__(self, maker: Maker, progress: Progress | None = None) -> None:
        self.maker, self.wish, self.progress = maker, maker.wish, progress
        self.notes: list[str] = []
        self.files: list[Path] = []

    def find(self, text: str) -> Code:
        """The code of a number, a condition or an image file."""
        wish, names = self.wish, self.wish.package.synthesis.condition_names
        if text.isascii() and text.isdigit():
            _require_condition(wish)
            if len(text) > len(str(LARGEST_SEED)):
                raise InputError(f"images are numbered from 0 to {LARGEST_SEED}, got {text[:20]}…")
            return self.maker.drawn(int(text), wish.conditions[0])
        if text in names:
            if not has_styles(self.maker.method):
                msg = f"model {wish.package.manifest.name!r} cannot mix conditions"
                hint = "It has no style space. Give numbers of images instead."
                raise InputError(msg, hint)
            return self.maker.drawn(0, names.index(text))
        path = Path(text)
        if not path.is_file():
            near = difflib.get_close_matches(text, names, n=1, cutoff=0.4)
            question = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"{text!r} is no number, no condition and no image file.{question}"
            raise InputError(msg, f"Conditions: {', '.join(names) or 'none'}.")
        return self.of_files([path])[0]

    def named(self, text: str) -> str:
        """An end as it may be recorded: a file name may name a patient."""
        return "an image file" if Path(text).is_file() else text

    def folder(self, folder: Path) -> list[Code]:
        """The codes of a folder's images."""
        recorded = _recorded(folder, self.maker)
        if recorded is None:
            return self.of_files(files_of(folder, IMAGE_ENDINGS, "images"))
        if not has_styles(self.maker.method):
            return [code for code, _ in recorded]
        return [to_style(self.maker.method, code, truncation) for code, truncation in recorded]

    def of_files(self, paths: Sequence[Path]) -> list[Code]:
        """The codes of image files: drawn again if the model made them, else searched for."""
        codes: list[Code | None] = [self._drawn_again(path) for path in paths]
        missing = [n for n, code in enumerate(codes) if code is None]
        if missing:
            refuse_annotated(self.wish)
            _require_condition(self.wish)
            pixels = np.stack([read_for(paths[n], self.wish) for n in missing])
            for n, found in zip(missing, self.invert(pixels), strict=True):
                codes[n] = found.code
            self.files += [paths[n] for n in missing]
        return [code for code in codes if code is not None]

    def invert(self, pixels: NDArray[np.float32]) -> list[Inverted]:
        """Search for the codes of images ``(N, C, *image_size)``."""
        if len(pixels) > MOST_INVERTED:
            msg = f"at most {MOST_INVERTED} images are inverted at once, got {len(pixels)}"
            raise InputError(msg, "Choose fewer.")
        near = training_images(self.wish.package)
        extract = near.extract if isinstance(near, TrainingImages) else None
        if extract is None:
            self.notes.append(f"images were inverted by grey values alone: {near}")
        found: list[Inverted] = []
        for first in range(0, len(pixels), AT_ONCE):
            part = pixels[first : first + AT_ONCE]
            conditions = [self.wish.conditions[0]] * len(part)
            found += invert(self.maker.method, part, conditions, extract=extract)
            if self.progress is not None:
                self.progress(len(found), len(pixels))
        return found

    def _drawn_again(self, path: Path) -> Code | None:
        """The code of an image that this model made from a seed; None for any other."""
        facts = read_facts(path)
        if facts is None or facts.get("model_sha256") != self.wish.package.sha256:
            return None
        seed, index, name = (facts.get(key) for key in ("seed", "index", "condition"))
        truncation = facts.get("truncation", 1.0)
        if not (_whole(seed) and _whole(index) and _share(truncation)):
            return None
        check_seed(seed)
        names = self.wish.package.synthesis.condition_names
        number = names.index(name) if name in names else None
        code = Code(draw(self.maker.method.latent_shape, seed, index), "z", number)
        if has_styles(self.maker.method):
            return to_style(self.maker.method, code, truncation)
        return code


def _recorded(folder: Path, maker: Maker) -> list[tuple[Code, float]] | None:
    """Codes and truncations in ``manifest.jsonl``, of images that still exist; None without one.

    Raises:
        InputError: It is damaged, of another model, or none of its images is left.
    """
    path, package = folder / "manifest.jsonl", maker.wish.package
    if not path.is_file():
        return None
    codes = []
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(text)
            if entry["model_sha256"] != package.sha256:
                msg = f"the images in {folder} were made by {entry['model']}, not by this model"
                raise InputError(msg, "Latents of different models cannot be added.")
            # An image that a person has sorted out is left out of the mean.
            if (folder / entry["file"]).exists():
                codes.append(_recorded_code(entry, maker))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}", "Make the images again.") from error
    if not codes:
        raise InputError(f"none of the images that {path} names is left")
    return codes


def _recorded_code(entry: Mapping[str, Any], maker: Maker) -> tuple[Code, float]:
    """The code in a line of a manifest, which somebody may have edited.

    Raises:
        ValueError: It is none of this model's.
    """
    method, names = maker.method, maker.wish.package.synthesis.condition_names
    space, truncation = entry["latent_space"], entry["truncation"]
    shapes = {"z": tuple(method.latent_shape)}
    if has_styles(method):
        shapes["w"] = tuple(method.w_mean.shape[1:])
    if space not in shapes:
        raise ValueError(f"latent_space is {space!r}, not {' or '.join(shapes)}")
    values = np.asarray(entry["latent"], dtype=np.float64)
    if values.shape != (prod(shapes[space]),) or not (np.abs(values) < 1e4).all():
        raise ValueError(f"a latent must be {prod(shapes[space])} small numbers")
    if not _share(truncation):
        raise ValueError(f"truncation is {truncation!r}, not from 0 to 1")
    number = names.index(entry["condition"]) if entry["condition"] in names else None
    if names and number is None and space == "z":
        raise ValueError(f"the model has no condition {entry['condition']!r}")
    return Code(values.astype(np.float32).reshape(shapes[space]), space, number), truncation


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def refuse_annotated(wish: Request) -> None:
    """Refuse to look for the code of an image of which the label map would have to be found too.

    Raises:
        InputError: The model makes annotated images.
    """
    if wish.annotated:
        msg = f"model {wish.package.manifest.name!r} paints label maps; it cannot be inverted"
        raise InputError(msg, "Give numbers of images of a seed instead.")


def _require_condition(wish: Request) -> None:
    """Ask for the condition if it must be known and several are possible.

    Raises:
        InputError: It must be named.
    """
    if len(wish.conditions) > 1:
        names = ", ".join(str(wish.condition_name(number)) for number in wish.conditions)
        msg = f"model {wish.package.manifest.name!r} has several conditions; one must be chosen"
        raise InputError(msg, f"Choose one with --condition: {names}.")


def read_for(path: Path, wish: Request) -> NDArray[np.float32]:
    """An image file as the model's images are: ``(C, *image_size)`` float32 in -1..1.

    Raises:
        InputError: It cannot be read, or has other dimensions, channels or proportions.
    """
    import torch
    from torch.nn import functional as F

    from medgen.io import read

    if not path.is_file():
        raise InputError(f"there is no image {path}")
    channels, *size = wish.image_shape
    volume = read(path, allow_constant=True)
    axes = axes_of(wish.package.manifest)
    if volume.spatial_dims != len(size):
        msg = f"{path.name} is {volume.spatial_dims}-D, the model makes {len(size)}-D images"
        raise InputError(msg)
    voxels = turned(volume.voxels, volume.geometry.axis_codes, axes).astype(np.float32)
    shape = voxels.shape[1:]
    if max(abs(a * size[0] / (b * shape[0]) - 1) for a, b in zip(shape, size, strict=True)) > 0.05:
        found, wanted = (" x ".join(map(str, s)) for s in (shape, size))
        msg = f"{path.name} has {found} pixels, the model makes {wanted}: other proportions"
        raise InputError(msg, "Cut it to these proportions.")
    if volume.voxels.dtype == np.uint8:
        scaled = voxels / 127.5 - 1
    else:
        low, high = np.percentile(voxels, (1, 99))
        scaled = (2 * (voxels - low) / max(float(high - low), 1e-6) - 1).clip(-1, 1)
    if channels == 1 and len(scaled) == 3:
        scaled = np.tensordot(np.array(LUMA), scaled, 1)[None]
    elif channels == 3 and len(scaled) == 1:
        scaled = np.repeat(scaled, 3, axis=0)
    if shape == tuple(size):
        return np.ascontiguousarray(scaled, dtype=np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32))[None]
    if len(size) == 3:
        return F.interpolate(tensor, tuple(size), mode="trilinear")[0].numpy()
    resized = F.interpolate(tensor, tuple(size), mode="bilinear", antialias=True)
    return resized[0].clamp(-1, 1).numpy()
