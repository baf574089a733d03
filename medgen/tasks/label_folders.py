"""Label maps that a person gives to be painted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.io.synthetic import read_label_png
from medgen.tasks.grids import PICTURE, axes_of, turned

if TYPE_CHECKING:
    from medgen.tasks.synthesize import Request

ENDINGS = (".png", ".nii", ".nii.gz", ".tif", ".tiff")


def files_of(folder: Path, endings: tuple[str, ...], what: str) -> list[Path]:
    """Files of a folder with these endings, by name.

    Raises:
        InputError: The folder is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", f"Name a folder of {what}.")
    found = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(endings) and not path.name.startswith(".")
    )
    if not found:
        msg = f"the folder {folder} holds no {what} ({', '.join(endings)})"
        raise InputError(msg, "Give another folder.")
    return found


def read_label_maps(folder: Path, wish: Request) -> list[tuple[Path, NDArray[np.int64]]]:
    """Label maps of a folder, each ``(*image_size)`` as the model takes them.

    Raises:
        InputError: The model takes none, or a map has another size or labels it does not know.
    """
    synthesis, name = wish.package.synthesis, wish.package.manifest.name
    if not synthesis.label_names:
        msg = f"model {name!r} makes no annotated images, so it cannot paint label maps"
        raise InputError(msg, "`medgen models show` says what a model makes.")
    return [(path, _read(path, wish)) for path in files_of(folder, ENDINGS, "label maps")]


def _read(path: Path, wish: Request) -> NDArray[np.int64]:
    size, known = wish.image_shape[1:], len(wish.package.synthesis.label_names)
    if path.suffix.lower() == ".png":
        labels = turned(read_label_png(path), PICTURE, axes_of(wish.package.manifest))
    else:
        from medgen.io import read

        volume = read(path, allow_constant=True)
        axes = axes_of(wish.package.manifest)
        labels = turned(volume.voxels[0], volume.geometry.axis_codes, axes)
    if labels.shape != size:
        expected, found = (" x ".join(map(str, shape)) for shape in (size, labels.shape))
        msg = f"the label map {path.name} has {found} voxels, the model paints {expected}"
        raise InputError(msg, "Resample it with nearest-neighbour interpolation.")
    values = labels.astype(np.int64)
    if not np.array_equal(values, labels) or values.min() < 0 or values.max() >= known:
        msg = (
            f"the label map {path.name} holds values from {labels.min():g} to {labels.max():g}; "
            f"the model knows 0 to {known - 1}"
        )
        names = ", ".join(
            f"{n} {label}" for n, label in enumerate(wish.package.synthesis.label_names)
        )
        raise InputError(msg, f"Labels: {names}.")
    return values
