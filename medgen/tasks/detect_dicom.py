"""The result of a detection as DICOM objects that a PACS files beside the scan."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medgen.tasks.detect import Detection
    from medgen.volume import Volume

# Segmentation, Parametric Map, structured report, Secondary Capture.
DICOM_KINDS = ("seg", "pmap", "sr", "sc")


def dicom_kinds(words: str | Sequence[str]) -> tuple[str, ...]:
    """The kinds of object that were asked for, once each, in the order of ``DICOM_KINDS``.

    Args:
        words: ``"seg,sr"`` or ``("seg", "sr")``.

    Raises:
        InputError: An unknown kind; suggests the nearest.
    """
    parts = words.split(",") if isinstance(words, str) else words
    wanted = [part.strip().lower() for part in parts if part.strip()]
    for word in wanted:
        if word not in DICOM_KINDS:
            near = difflib.get_close_matches(word, DICOM_KINDS, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"there is no kind of DICOM output {word!r}",
                f"{hint}Known: {', '.join(DICOM_KINDS)}; separate several by commas.",
            )
    return tuple(kind for kind in DICOM_KINDS if kind in wanted)


def dicom_names(stem: str, kinds: Sequence[str]) -> dict[str, str]:
    """File name of each object: ``STEM_seg.dcm`` and so on."""
    return {kind: f"{stem}_{kind}.dcm" for kind in dicom_kinds(kinds)}


def check_dicom_format(name: str) -> None:
    """Refuse DICOM output for a scan of another format (as in ``describe``, or a volume's).

    Raises:
        InputError: The scan is not DICOM.
    """
    from medgen.io.dicom_out import refuse_other_format

    refuse_other_format(name)


def check_dicom_source(volume: Volume) -> None:
    """Refuse a scan beside which no DICOM object can be filed, before anything is computed.

    Raises:
        InputError: It is not DICOM, or lacks the UIDs that a citation needs.
    """
    from medgen.io.dicom_out import check_source

    check_source(volume)


def write_dicom_outputs(detection: Detection, folder: Path, kinds: Sequence[str]) -> dict[str, str]:
    """Write the DICOM objects of a detection.

    The report cites the Segmentation if both are written.

    Args:
        detection: The result; its scan was read from DICOM, and the files are still there.
        folder: An existing folder. If it holds ``overview.png``, that is the picture of the
            Secondary Capture; it is drawn otherwise.
        kinds: Of :data:`DICOM_KINDS`.

    Returns:
        The name of each file by its kind.

    Raises:
        InputError: The scan is not DICOM, its files are gone, or the folder cannot be written.
    """
    from medgen.io import dicom_out
    from medgen.tasks.detect_files import output_stem

    names = dicom_names(output_stem(detection.volume.provenance.sources), kinds)
    if not names:
        return names
    source = dicom_out.open_source(detection.volume)
    producer = dicom_out.Producer(
        detection.model.name, detection.model.version, detection.model_sha256
    )
    mask = None
    if "seg" in names:
        mask = dicom_out.write_segmentation(folder / names["seg"], source, producer, detection.mask)
    if "pmap" in names:
        dicom_out.write_parametric_map(folder / names["pmap"], source, producer, detection.map)
    if "sr" in names:
        result = dicom_out.ScanResult(
            detection.score, detection.p_value, detection.threshold, detection.threshold_meaning
        )
        dicom_out.write_measurement_report(
            folder / names["sr"], source, producer, result, detection.findings, segmentation=mask
        )
    if "sc" in names:
        picture = _overview(detection, folder / "overview.png")
        dicom_out.write_secondary_capture(folder / names["sc"], source, producer, picture)
    return names


def _overview(detection: Any, drawn: Path) -> NDArray[Any]:
    """The overview as ``(rows, columns, 3)`` uint8."""
    import numpy as np
    from PIL import Image

    from medgen.report.figures import overview

    with tempfile.TemporaryDirectory() as folder:
        path = drawn if drawn.exists() else overview(detection, Path(folder) / "overview.png")
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
