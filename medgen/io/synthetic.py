"""Writing images that a model made, so that no copy of them can be taken for a patient's.

Every format carries the mark itself: PNG in text chunks, NIfTI in the header's description and a
JSON file beside it, DICOM in Synthetic Data (0008,001C).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.io.files import atomic_path
from medgen.io.nifti import write_nifti
from medgen.volume import Geometry

WARNING = "SYNTHETIC image, made by a model. Not the scan of a patient. Not for diagnosis."
# The key of the text chunk that holds the facts as JSON.
KEY = "medgen"
# The NIfTI header's description has room for 79 bytes.
DESCRIPTION = "SYNTHETIC image made by medgen; see the JSON file"
# Label 0 is black; the others are told apart by people with any colour vision (Okabe, Ito 2008).
PALETTE = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (153, 153, 153), (255, 255, 255),
)  # fmt: skip


def label_colours(count: int) -> list[tuple[int, int, int]]:
    """A colour for each label value from 0."""
    cycle = PALETTE[1:]
    return [PALETTE[0], *(cycle[n % len(cycle)] for n in range(count - 1))]


def write_png(
    path: str | os.PathLike[str],
    pixels: NDArray[np.uint8],
    facts: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a picture with its facts.

    Args:
        path: The file.
        pixels: ``(C, X, Y)`` with 1 or 3 channels, laid out as :mod:`medgen.io.raster` reads it.
        facts: What made it: model, seed, condition, ... as JSON values.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        InputError: It is no picture, or the file exists or cannot be written.
    """
    import PIL.Image

    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        msg = f"a picture has 1 or 3 channels and two axes, got {pixels.shape}"
        raise InputError(msg, "Write volumes as NIfTI.")
    rows = np.ascontiguousarray(pixels.transpose(2, 1, 0))
    image = PIL.Image.fromarray(rows[..., 0] if pixels.shape[0] == 1 else rows)
    return _save(path, image, facts, overwrite)


def write_label_png(
    path: str | os.PathLike[str],
    labels: NDArray[np.integer[Any]],
    facts: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a label map ``(X, Y)`` whose stored values are the labels, shown in colours."""
    import PIL.Image

    if labels.ndim != 2 or labels.min() < 0 or labels.max() > 255:
        msg = f"a label picture holds values from 0 to 255 on two axes, got {labels.shape}"
        raise InputError(msg, "Write it as NIfTI.")
    image = PIL.Image.fromarray(np.ascontiguousarray(labels.astype(np.uint8).T))
    colours = label_colours(256)
    image = image.convert("P")
    image.putpalette([part for colour in colours for part in colour])
    return _save(path, image, facts, overwrite)


def read_label_png(path: Path) -> NDArray[np.int64]:
    """The stored values ``(X, Y)`` of a label picture: of a palette the numbers, not the colours.

    Raises:
        InputError: Damaged, or in colour.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=("PNG",)) as image:
            if image.mode not in ("P", "L", "1", "I;16", "I"):
                msg = f"{path.name} is no label map: it is in colour ({image.mode})"
                raise InputError(msg, "Label maps hold one number per pixel.")
            return np.asarray(image).astype(np.int64).T
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} is damaged or incomplete: {error}") from error


def _save(
    path: str | os.PathLike[str], image: Any, facts: Mapping[str, Any], overwrite: bool
) -> Path:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("Description", WARNING)
    chunks.add_text("Software", f"medgen; model {facts.get('model', 'unknown')}")
    chunks.add_itxt(KEY, json.dumps({"synthetic": True, **facts}, sort_keys=True))
    with atomic_path(path, overwrite) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
    return Path(path)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a PNG or beside a NIfTI file that medgen made; None if there are none."""
    import PIL.Image

    text: str | None = None
    if path.name.endswith((".nii", ".nii.gz")):
        sidecar = sidecar_of(path)
        text = sidecar.read_text(encoding="utf-8") if sidecar.is_file() else None
    elif path.suffix.lower() == ".png":
        try:
            with PIL.Image.open(path, formats=("PNG",)) as image:
                text = image.info.get(KEY)
        except (OSError, ValueError, SyntaxError):
            return None
    try:
        facts = json.loads(text) if text else None
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and facts.get("synthetic") is True else None


def sidecar_of(path: Path) -> Path:
    """The JSON file beside a NIfTI file."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def write_synthetic_nifti(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    geometry: Geometry,
    facts: Mapping[str, Any],
    *,
    label: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write ``(X, Y[, Z])`` as NIfTI, marked in its header, and the facts as JSON beside it."""
    target = Path(path)
    write_nifti(
        target, array, geometry, kind="label" if label else "image",
        description=DESCRIPTION, overwrite=overwrite,
    )  # fmt: skip
    text = json.dumps({"synthetic": True, "description": WARNING, **facts}, indent=2)
    with atomic_path(sidecar_of(target), overwrite) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return target
