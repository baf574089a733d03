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


def check_dicom_source(volume: Volume, kinds: Sequence[str]) -> None:
    """Refuse a scan beside which these objects cannot be filed, before anything is computed.

    Raises:
        InputError: It is not DICOM, lacks the UIDs that a citation needs, or has no place in the
            patient, which a Parametric Map needs.
    """
    from medgen.io import dicom_out

    if kinds:
        source = dicom_out.open_source(volume)
        if "pmap" in kinds:
            dicom_out.refuse_without_place(source)


def write_dicom_outputs(
    detection: Detection, folder: Path, kinds: Sequence[str], *, overview: str | None = None
) -> dict[str, str]:
    """Write the DICOM objects of a detection.

    The report cites the Segmentation if both are written.

    Args:
        detection: The result; its scan was read from DICOM, and the files are still there.
        folder: An existing folder.
        kinds: Of :data:`DICOM_KINDS`.
        overview: Name of the overview in the folder, if it has been drawn; it becomes the
            Secondary Capture, and is drawn otherwise.

    Returns:
        The name of each file by its kind.

    Raises:
        InputError: The scan is not DICOM, its files are gone, or the folder cannot be written.
    """
    from medgen.io import dicom_out
    from medgen.report.words import reason
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
            folder / names["sr"], source, producer, result, detection.findings,
            reasons={one.label: reason(one) for one in detection.explanations}, segmentation=mask,
        )  # fmt: skip
    if "sc" in names:
        picture = _picture(detection, None if overview is None else folder / overview)
        dicom_out.write_secondary_capture(folder / names["sc"], source, producer, picture)
    return names


def _picture(detection: Any, drawn: Path | None) -> NDArray[Any]:
    """The overview as ``(rows, columns, 3)`` uint8."""
    import numpy as np
    from PIL import Image

    from medgen.report.figures import overview

    with tempfile.TemporaryDirectory() as folder:
        path = overview(detection, Path(folder) / "overview.png") if drawn is None else drawn
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
