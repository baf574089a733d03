"""The cases of an evaluation of anomaly detection: images, lesion masks, conditions, subjects.

A set is a folder with a subfolder per condition (whole images are normal or abnormal), images with
lesion masks, or drawn phantoms. A case reads its files when it is asked to, and keeps nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from medgen.config import Config
from medgen.errors import GeometryError, InputError, LeakageError
from medgen.grouped_files import (
    PICTURES,
    VOLUMES,
    SetConfig,
    condition_names,
    files,
    hash_contents,
    split,
    stem,
)
from medgen.run_record import hash_name
from medgen.tasks.paired_files import partners
from medgen.volume import Volume

ENDINGS = (*PICTURES, *VOLUMES, ".dcm")
# Resampled atlases are known to differ in the last digits of a 32-bit header.
GRID_TOLERANCE_MM = 1e-2
# Which kind of set each setting belongs to.
FITTING = {
    "masks": ("images",),
    "first_label": ("images",),
    "regions": ("images",),
    "group_pattern": ("images", "folder"),
    "exclude": ("images", "folder"),
    "conditions": ("folder",),
    "abnormal": ("folder",),
    "validation_fraction": ("folder",),
    "side": ("folder",),
}


class PhantomSet(Config):
    """Drawn heads with a planted lesion each."""

    count: int = Field(8, ge=1, description="number of heads, each another subject")
    first: int = Field(1000, ge=0, description="seed of the first; training draws from 0 on")
    contrast: Literal["t1", "t2", "flair"] = "flair"
    shape: tuple[int, ...] = Field((48, 56, 40), description="voxels; two numbers draw slices")
    spacing_mm: float = Field(3.0, gt=0)
    lesion_radius_mm: float = Field(10.0, gt=0)
    normal: int = Field(0, ge=0, description="so many of the heads, the last, have no lesion")


class CaseSet(Config):
    """Where a set of cases lies and which of it is taken. Paths lie below the study's root."""

    phantoms: PhantomSet | None = Field(None, description="draw heads instead of reading files")
    images: str | None = Field(
        None, description="a file, a folder, or a pattern such as 'brain/*/*_FLAIR.nii.gz'"
    )
    masks: str | dict[str, str] | None = Field(
        None,
        description="lesion masks, as for images, matched by name; or {PART: OTHER}, which "
        "replaces a part of the image's name; left out: the images are normal",
    )
    first_label: int = Field(1, ge=1, description="masks are abnormal from this value on")
    regions: str | dict[str, str] | None = Field(
        None, description="masks of where to look, given like masks; left out: they are found"
    )
    folder: Path | None = Field(None, description="folder with a subfolder per condition")
    conditions: dict[str, str] | None = Field(
        None, description="name of each condition and its subfolder; left out: every subfolder"
    )
    abnormal: tuple[str, ...] = Field((), description="the conditions that are abnormal")
    validation_fraction: float = Field(
        0.15, ge=0, lt=1, description="part of the folder that training holds out"
    )
    side: Literal["held_out", "train", "all"] = Field(
        "held_out", description="which side of that split the cases come from"
    )
    group_pattern: str | None = Field(
        None, description="regular expression whose first (...) is the subject in a file's name"
    )
    exclude: tuple[str, ...] = Field((), description="files to leave out, by name without ending")
    part: tuple[float, float] = Field(
        (0.0, 1.0),
        description="part of the subjects, in an order that only their names decide: [0, 0.5] and "
        "[0.5, 1] share no subject",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> CaseSet:
        given = [k for k in ("phantoms", "images", "folder") if getattr(self, k) is not None]
        if len(given) != 1:
            msg = f"give one of phantoms, images and folder, got {', '.join(given) or 'none'}"
            raise ValueError(msg)
        defaults = CaseSet.model_fields
        unused = [
            name
            for name, kinds in FITTING.items()
            if given[0] not in kinds and getattr(self, name) != defaults[name].default
        ]
        if unused:
            raise ValueError(f"{', '.join(unused)} mean nothing beside {given[0]}: leave them out")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError(f"part must be two rising numbers in 0..1, got {self.part}")
        return self


@dataclass(frozen=True, eq=False)
class Loaded:
    """A case in memory.

    Attributes:
        volume: The image.
        truth: Where it is abnormal ``(X, Y[, Z])``; None if nobody marked it.
        region: Where to look, if that is given.
    """

    volume: Volume
    truth: NDArray[np.bool_] | None
    region: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Case:
    """One image of a set.

    Attributes:
        name: Of the file.
        group: The subject.
        abnormal: Whether the image is; None if its mask must be read to know.
        image: Its file; None if it is drawn.
        mask: Of its lesion mask, if any.
        region: Of the mask of where to look, if any.
        first_label: Masks are abnormal from this value on.
        phantom: How to draw it, with the seed, if it is drawn.
    """

    name: str
    group: str
    abnormal: bool | None
    image: Path | None
    mask: Path | None = None
    region: Path | None = None
    first_label: int = 1
    phantom: tuple[PhantomSet, int] | None = None

    @property
    def masked(self) -> bool:
        """Whether it is known which voxels are abnormal (in a normal image, none)."""
        return self.mask is not None or self.phantom is not None or self.abnormal is False

    @property
    def contents(self) -> str | None:
        """SHA-256 of its image file; None if it is drawn."""
        return None if self.image is None else hash_contents(self.image)

    def load(self) -> Loaded:
        """Read or draw it.

        Raises:
            InputError: A file cannot be read.
            GeometryError: A mask lies on another grid than the image.
        """
        from medgen import io

        if self.phantom is not None:
            return self._draw(*self.phantom)
        assert self.image is not None
        volume = io.read(self.image)
        if self.mask is not None:
            truth = _on_grid(self.mask, self.image, volume) >= self.first_label
        elif self.abnormal is False:
            truth = np.zeros(volume.geometry.shape, bool)
        else:
            truth = None
        region = None
        if self.region is not None:
            region = _on_grid(self.region, self.image, volume) > 0
        return Loaded(volume, truth, region)

    def _draw(self, settings: PhantomSet, seed: int) -> Loaded:
        from medgen.phantoms import brain

        head = brain(
            settings.shape, spacing_mm=settings.spacing_mm, seed=seed, contrast=settings.contrast,
            lesion_radius_mm=settings.lesion_radius_mm if self.abnormal else None,
        )  # fmt: skip
        return Loaded(head.image, head.lesion, head.brain)


def _on_grid(path: Path, image: Path, volume: Volume) -> NDArray[Any]:
    from medgen import io

    mask = io.read(path, allow_constant=True)
    if not volume.geometry.same_grid_as(mask.geometry, GRID_TOLERANCE_MM):
        raise _other_grid(path, image, mask.geometry.shape, volume.geometry.shape)
    labels = mask.voxels[0]
    if (labels != np.round(labels)).any():
        raise InputError(
            f"{path.name} holds fractions, up to {labels.max():.3g}: a mask needs whole numbers",
            "Write it with a threshold, such as 0.5.",
        )
    return labels


def _other_grid(
    mask: Path, image: Path, found: tuple[int, ...], expected: tuple[int, ...]
) -> GeometryError:
    sizes = f"{found} and {expected} voxels"
    if found == expected:
        sizes = f"both have {found} voxels, but not in the same places"
    return GeometryError(
        f"{mask.name} lies on another grid than its image {image.name}: {sizes}",
        "Resample the mask to the image's grid first.",
    )


def refuse_other_sizes(cases: Sequence[Case]) -> None:
    """Refuse a mask of another size than its image by their headers, before any work is done.

    (Grids of equal size are compared when a case is read.)

    Raises:
        GeometryError: One is.
        InputError: A header cannot be read.
    """
    from medgen import io

    for case in cases:
        given = [path for path in (case.mask, case.region) if path is not None]
        if case.image is None or not given:
            continue
        expected = tuple(io.preview(case.image)["shape"])
        for path in given:
            if (found := tuple(io.preview(path)["shape"])) != expected:
                raise _other_grid(path, case.image, found, expected)


def cases_of(settings: CaseSet, root: Path) -> list[Case]:
    """The cases of a set, by name.

    Raises:
        InputError: Files, folders or masks are missing, or nothing is left.
    """
    if settings.phantoms is not None:
        found = _phantoms(settings.phantoms)
    elif settings.folder is not None:
        found = _of_folder(settings, root)
    else:
        found = _of_images(settings, root)
    low, high = settings.part
    kept = [case for case in found if low <= _place(case.group) < high]
    if not kept:
        msg = f"no case is left in part {list(settings.part)} of {len(found)}"
        raise InputError(msg, "Widen `part`.")
    return sorted(kept, key=lambda case: case.name)


def _place(group: str) -> float:
    """Where a subject stands in 0..1; another order than that of the split for training."""
    return int.from_bytes(hashlib.sha256(f"part {group}".encode()).digest()[:7], "big") / 2**56


def phantom_name(seed: int) -> str:
    """What a drawn head is called: equal seeds are the same head."""
    return f"phantom-{seed}"


def _phantoms(settings: PhantomSet) -> list[Case]:
    return [
        Case(
            phantom_name(settings.first + n), phantom_name(settings.first + n),
            n < settings.count - settings.normal, None, phantom=(settings, settings.first + n),
        )
        for n in range(settings.count)
    ]  # fmt: skip


def _of_folder(settings: CaseSet, root: Path) -> list[Case]:
    """Whole images, normal or abnormal by their subfolder; split as training splits them."""

    def find(folder: Path) -> list[tuple[Path, Path | None]]:
        return [(path, None) for path in files(folder, ENDINGS)]

    assert settings.folder is not None
    config = SetConfig(
        folder=root / settings.folder,
        conditions=settings.conditions,
        group_pattern=settings.group_pattern,
        exclude=settings.exclude,
        validation_fraction=settings.validation_fraction,
    )
    names = condition_names(config, find)
    unknown = [name for name in settings.abnormal if name not in names]
    if unknown:
        raise InputError(
            f"abnormal names {', '.join(unknown)}, which is no condition of {settings.folder}",
            f"It has: {', '.join(names) or 'no subfolders with images'}.",
        )
    train, held_out = split(config, find)
    sides = {"held_out": held_out, "train": train, "all": [*train, *held_out]}
    return [
        Case(
            "/".join(([names[item.condition]] if names else []) + [item.path.name]),
            item.group,
            bool(names) and names[item.condition] in settings.abnormal,
            item.path,
        )
        for item in sides[settings.side]
    ]


def _of_images(settings: CaseSet, root: Path) -> list[Case]:
    """Images with lesion masks, or normal ones."""
    assert settings.images is not None
    paths = {path.relative_to(root).as_posix(): path for path in _files(settings.images, root)}
    paths = {k: p for k, p in paths.items() if stem(p) not in settings.exclude}
    masks = _beside(settings.masks, "mask", paths, root)
    regions = _beside(settings.regions, "region", paths, root)
    groups = _groups(paths, settings.group_pattern)
    return [
        Case(
            name, groups[name], None if masks else False, path,
            masks.get(name), regions.get(name), settings.first_label,
        )
        for name, path in paths.items()
    ]  # fmt: skip


def _groups(names: Collection[str], pattern: str | None) -> dict[str, str]:
    """The subject of each image; without a pattern each is its own, named by file or by path."""
    if pattern is not None:
        return {name: _group(name, pattern) for name in names}
    found = {name: stem(Path(name)) for name in names}
    if len(set(found.values())) == len(found):
        return found
    return {name: str(Path(name).with_name(stem(Path(name)))) for name in names}


def _group(name: str, pattern: str) -> str:
    """The subject, by the first (...) of a pattern in the path below the root."""
    try:
        match = re.search(pattern, name)
        group = match.group(1) if match else None
    except (re.error, IndexError) as error:
        msg = f"group_pattern {pattern!r} must be a regular expression with one (...): {error}"
        raise InputError(msg, "For `patient7_3.png` write '([^/_]+)_[^/]*$'.") from error
    if not group:
        raise InputError(f"group_pattern {pattern!r} finds no subject in {name}")
    return group


def _files(given: str, root: Path) -> list[Path]:
    """The images that a file, folder or pattern stands for."""
    path = root / given
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(ENDINGS))
    else:
        found = sorted(p for p in root.glob(given) if p.is_file())
    found = [p for p in found if not p.name.startswith(".")]
    if not found:
        raise InputError(f"there are no images at {given} below {root}", "Check `root` and paths.")
    return found


def _beside(
    given: str | dict[str, str] | None, what: str, images: dict[str, Path], root: Path
) -> dict[str, Path]:
    """The mask of each image."""
    if given is None:
        return {}
    if isinstance(given, dict):
        found = {}
        for name, path in images.items():
            other = path.name
            for part, replacement in given.items():
                other = other.replace(part, replacement)
            found[name] = path.with_name(other)
    elif "*" in given:
        found = _by_name(_files(given, root), images, what)
    else:
        short = {name.rpartition(".")[0].removesuffix(".nii"): name for name in images}
        found = {short[k]: p for k, p in partners(dict.fromkeys(short, Path()), root / given,
                                                  "mask", None).items()}  # fmt: skip
    lacking = [name for name in images if name not in found or not found[name].is_file()]
    lacking += [name for name in images if found.get(name) == images[name]]
    if lacking:
        msg = f"{len(lacking)} of {len(images)} images have no {what}, such as {lacking[0]}"
        raise InputError(msg, f"Check `{what}s`, or exclude these images.")
    return found


def _by_name(offered: Sequence[Path], images: Mapping[str, Path], what: str) -> dict[str, Path]:
    """The file that is named like each image, with as many of the folders above it as it takes."""
    for depth in range(max(len(path.parts) for path in (*offered, *images.values()))):
        every = {_ends(path, depth): path for path in offered}
        wanted = {_ends(path, depth): name for name, path in images.items()}
        if len(every) == len(offered) and len(wanted) == len(images):
            return {name: every[key] for key, name in wanted.items() if key in every}
    raise InputError(
        f"two {what}s or two images differ in nothing but the ending of their names",
        "Remove or rename one of them.",
    )


def _ends(path: Path, depth: int) -> tuple[str, ...]:
    """The name of a file and of so many folders above it."""
    return (*path.parent.parts[len(path.parent.parts) - depth :], stem(path))


def refuse_shared(sets: Mapping[str, Sequence[Case]]) -> None:
    """Refuse a subject, or an image, that is in two sets.

    Raises:
        LeakageError: One is.
    """
    owner: dict[str, str] = {}
    content: dict[str, tuple[str, Case]] = {}
    for name, cases in sets.items():
        for case in cases:
            other = owner.setdefault(case.group, name)
            if other != name:
                raise LeakageError(
                    f"subject {case.group} is in both {other} and {name}",
                    "Thresholds and false positives must come from other subjects: use `part`, "
                    "another folder, or a better group_pattern.",
                )
            if case.contents is None:
                continue
            twin = content.setdefault(case.contents, (name, case))
            if twin[0] != name:
                raise LeakageError(
                    f"{case.name} of {name} is the same image as {twin[1].name} of {twin[0]}",
                    "Leave one of them out.",
                )
            if twin[1].group != case.group:
                raise LeakageError(
                    f"{case.name} and {twin[1].name} of {name} are the same image of two subjects, "
                    f"{case.group} and {twin[1].group}",
                    "Exclude one of them: counted twice, intervals come out too narrow.",
                )


def refuse_known(model: str, known: Collection[str], cases: Sequence[Case], of: str) -> None:
    """Refuse cases that a model was made with.

    Args:
        model: Its name.
        known: SHA-256 of the subjects' names, and of a run also of the files, that it has seen.
        cases: Of a set.
        of: The set's name.

    Raises:
        LeakageError: It has seen one of the subjects or images.
    """
    if not known:
        return
    seen = [case for case in cases if hash_name(case.group) in known or case.contents in known]
    if seen:
        raise LeakageError(
            f"{model} was trained or calibrated on {len(seen)} of the {len(cases)} cases of {of}, "
            f"such as {seen[0].name}",
            "Evaluate it on other subjects. Of a set that is split, training and evaluation need "
            "the same validation_fraction, group_pattern and exclude.",
        )
