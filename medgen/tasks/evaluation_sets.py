"""Real, synthetic and training images from folders, brought to one size, for an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medgen.annotated_sets import cropped_or_padded, find_pairs, read_case
from medgen.errors import InputError
from medgen.grouped_files import (
    PICTURES,
    VOLUMES,
    Finder,
    Item,
    SetConfig,
    condition_names,
    files,
    split,
)
from medgen.image_sets import read_image, resampled, with_channels
from medgen.tasks.image_set import ImageSet

MANIFEST = "manifest.jsonl"
# By custom the part of an .npz's name before the first underscore is the patient.
NPZ_PATIENT = "^([^_.]+)[_.]"
Fit = Literal["resample", "crop"]


@dataclass(frozen=True)
class Where:
    """How a folder of real images is to be read.

    Attributes:
        conditions: Name of each condition and its subfolder; None: every subfolder is one.
        group_pattern: Regular expression whose first (...) is the patient in a file's name.
        exclude: Files to leave out, by name without ending.
        held_out: Part of the images that is held out; the rest was trained on.
        fit: How a real image gets to the size of the synthetic ones.
        slices: Take volumes apart into slices along their last axis.
    """

    conditions: dict[str, str] | None = None
    group_pattern: str | None = None
    exclude: tuple[str, ...] = ()
    held_out: float | None = None
    fit: Fit = "resample"
    slices: bool = False


@dataclass(frozen=True, eq=False)
class Loaded:
    """What an evaluation compares.

    Attributes:
        real: Held-out real images.
        fake: Synthetic images.
        train: Training images, if they are known.
        condition_names: In the order of their numbers.
        model: What the synthetic images' manifest says of their model.
        notes: What was changed or left out on the way.
    """

    real: ImageSet
    fake: ImageSet
    train: ImageSet | None
    condition_names: tuple[str, ...]
    model: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_sets(real: Path, fake: Path, train: Path | None, where: Where) -> Loaded:
    """Read everything that an evaluation needs.

    Real images are brought to the size and channels of the synthetic ones; real volumes are taken
    apart into slices if the synthetic images are flat.

    Raises:
        InputError: A folder or file is missing or damaged, conditions do not fit each other,
            images are of mixed sizes, or labels do not match images.
        LeakageError: The same file or group is held out and trained on.
    """
    if train is not None and where.held_out is not None:
        raise InputError("--train and --held-out exclude each other", "Give one of them.")
    trained, items, names = _real_items(real, where)
    if train is not None:
        items = [*trained, *items]
        *parts, others = _real_items(train, where)
        trained = [*parts[0], *parts[1]]
        if others != names:
            raise InputError(f"{real} has the conditions {names}, {train} has {others}")
    elif not items:
        items, trained = trained, []
    made, conditions, model = _fake_items(fake)
    numbers = _numbers(conditions, names, fake)
    made_images = _stacked(_alike(made), numbers, None)
    target = made_images.images.shape[1:]
    notes = []
    stored = tuple(_read(items[0])[0].shape)
    if len(stored) > len(target):
        notes.append("real volumes were taken apart into slices, as the synthetic images are flat")
    if stored[: len(target)] != target:
        how = "resampled" if where.fit == "resample" else "cut or padded"
        notes.append(f"real images were {how} from {_by(stored)} to {_by(target)}")
    held_out = _real_set(items, target, where.fit, bool(names))
    training = _real_set(trained, target, where.fit, bool(names)) if trained else None
    if where.slices:
        notes.append("volumes were taken apart into slices along their last axis")
        made_images, held_out = made_images.slices(), held_out.slices()
        training = None if training is None else training.slices()
    return Loaded(held_out, made_images, training, names, model, tuple(notes))


def _real_items(folder: Path, where: Where) -> tuple[list[Item], list[Item], tuple[str, ...]]:
    """Files to train on, files held out, and names of conditions of a folder of real images."""
    find, annotated = _finder(folder)
    pattern = where.group_pattern
    if pattern is None and annotated and any(folder.rglob("*.npz")):
        pattern = NPZ_PATIENT
    config = SetConfig(
        folder=folder,
        conditions=where.conditions,
        group_pattern=pattern,
        exclude=where.exclude,
        validation_fraction=where.held_out or 0,
    )
    return *split(config, find), condition_names(config, find)


def _finder(folder: Path) -> tuple[Finder, bool]:
    """What takes files of this folder for images, and whether they have labels."""
    if not folder.is_dir():
        raise InputError(f"there is no folder at {folder}", "Give a folder of images.")
    below = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    if any(find_pairs(path) for path in below):
        return find_pairs, True
    return lambda path: [(found, None) for found in files(path, PICTURES + VOLUMES)], False


def _fake_items(folder: Path) -> tuple[list[Item], list[str | None], dict[str, Any]]:
    """Synthetic files with the name of each one's condition, and what made them."""
    path = folder / MANIFEST
    if not path.is_file():
        find, _ = _finder(folder)
        config = SetConfig(folder=folder, validation_fraction=0)
        items, _ = split(config, find)
        names = condition_names(config, find)
        return items, [names[item.condition] if names else None for item in items], {}
    items, conditions, lines = [], [], _manifest(path)
    for line in lines:
        labels = line.get("labels")
        item = Item(
            folder / line["file"], 0, str(line["index"]), folder / labels if labels else None
        )
        for wanted in (item.path, item.labels):
            if wanted is not None and not wanted.is_file():
                raise InputError(
                    f"{path} lists {wanted.name}, which is not a file of that folder",
                    "Synthesize again, as PNG or NIfTI; DICOM is not evaluated.",
                )
        if item.path.suffix.lower() == ".dcm":
            raise InputError(f"{item.path} is DICOM", "Synthesize as PNG or NIfTI to evaluate.")
        items.append(item)
        conditions.append(line.get("condition"))
    keys = ("model", "model_version", "model_sha256", "truncation", "seed")
    return items, conditions, {key: lines[0].get(key) for key in keys}


def _manifest(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        complete = all("index" in line for line in lines)
        for line in lines:
            for name in (line["file"], line.get("labels") or "", line.get("condition") or ""):
                if not isinstance(name, str):
                    raise TypeError(f"{name!r} is no name")
            for name in (line["file"], line.get("labels") or ""):
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    raise ValueError(f"{name!r} leads out of the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}", "Synthesize again.") from error
    if not lines or not complete:
        raise InputError(f"{path} lists no images", "Synthesize again.")
    return lines


def _numbers(
    conditions: Sequence[str | None], names: Sequence[str], fake: Path
) -> NDArray[np.int64] | None:
    """Numbers of the synthetic images' conditions among those of the real ones."""
    found = {name for name in conditions if name}
    if not names or not found:
        return None
    unknown = sorted(found - set(names))
    if unknown:
        raise InputError(
            f"{fake} has images of {', '.join(unknown)}, REAL has {', '.join(names)}",
            "Say which subfolder is which with --conditions NAME=SUBFOLDER,...",
        )
    if None in conditions:
        raise InputError(f"some images of {fake} have a condition, others have none")
    return np.array([names.index(name) for name in conditions if name is not None])


def _read(item: Item) -> tuple[Tensor, Tensor | None]:
    """An image ``(C, *spatial)`` uint8 with its second axis downwards, and its label map."""
    if item.labels is None and item.path.suffix != ".npz":
        image, labels = read_image(item.path)[0], None
    else:
        case = read_case(item)
        image, labels = case.image, case.labels
    found = torch.from_numpy(np.ascontiguousarray(image))
    truth = None if labels is None else torch.from_numpy(np.ascontiguousarray(labels))
    if item.path.name.lower().endswith(VOLUMES):
        # A volume's second axis points to the front, a picture's downwards.
        found, truth = found.flip(2), None if truth is None else truth.flip(2)
    return found, truth


def _alike(items: Sequence[Item]) -> list[tuple[Tensor, Tensor | None]]:
    """Synthetic images, if all are of one size and mode."""
    found = [_read(item) for item in items]
    first = found[0][0].shape
    for item, (image, _) in zip(items, found, strict=True):
        if image.shape != first:
            raise InputError(
                f"synthetic images differ: the first is {_by(first)}, "
                f"{item.path.name} is {_by(image.shape)}",
                "Evaluate images of one model at a time.",
            )
    return found


def _real_set(items: Sequence[Item], target: tuple[int, ...], fit: Fit, named: bool) -> ImageSet:
    """Real images of the synthetic ones' size and channels; volumes as slices if those are flat."""
    found: list[tuple[Tensor, Tensor | None]] = []
    owners: list[Item] = []
    change = _resample if fit == "resample" else _crop
    for item in items:
        image, labels = _read(item)
        if image.ndim < len(target):
            msg = f"{item.path} is a picture, but the synthetic images are volumes"
            raise InputError(msg, "Give volumes as REAL.")
        pieces = [(image, labels)]
        if image.ndim > len(target):
            cuts = labels.unbind(-1) if labels is not None else [None] * image.shape[-1]
            pieces = list(zip(image.unbind(-1), cuts, strict=True))
        for one, its in pieces:
            fitted = change(with_channels(one, target[0]), target[1:], False)
            found.append((fitted, None if its is None else change(its, target[1:], True)))
            owners.append(item)
    numbers = np.array([item.condition for item in owners]) if named else None
    return _stacked(found, numbers, [item.group for item in owners])


def _resample(values: Tensor, size: Sequence[int], is_label: bool) -> Tensor:
    if not is_label:
        return resampled(values, size)
    scaled = F.interpolate(values[None].float(), tuple(size), mode="nearest-exact")
    return scaled[0].to(values.dtype)


def _crop(values: Tensor, size: Sequence[int], is_label: bool) -> Tensor:
    return cropped_or_padded(values, size)


def _stacked(
    found: Sequence[tuple[Tensor, Tensor | None]],
    numbers: NDArray[np.int64] | None,
    groups: Sequence[str] | None,
) -> ImageSet:
    images = torch.stack([image for image, _ in found]).numpy()
    labels = [its for _, its in found if its is not None]
    return ImageSet(
        images.astype(np.float32) / np.float32(127.5) - 1,
        numbers,
        torch.stack(labels).numpy().astype(np.int64) if len(labels) == len(found) else None,
        groups,
    )


def _by(shape: Sequence[int]) -> str:
    channels = {1: "grey", 3: "colour"}.get(shape[0], f"{shape[0]} channels")
    return f"{' x '.join(map(str, shape[1:]))} {channels}"
