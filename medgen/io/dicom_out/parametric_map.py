"""The anomaly map as a DICOM Parametric Map of float numbers (PS3.3 A.75)."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medgen.errors import InputError
from medgen.io.dicom_out.common import (
    RESEARCH_ONLY,
    Producer,
    Written,
    cite_frames,
    code,
    discreet,
    equipment,
    finish,
    identity,
    save,
)
from medgen.io.dicom_out.source import Source


def write_parametric_map(
    path: str | os.PathLike[str],
    source: Source,
    producer: Producer,
    scores: NDArray[np.floating],
    *,
    overwrite: bool = False,
) -> Written:
    """Write the map, one frame per source slice, with the very numbers (float32).

    Args:
        path: The file to write.
        source: The series, from :func:`~medgen.io.dicom_out.open_source`.
        producer: What made the map.
        scores: Anomaly map on the volume's grid, ``(X, Y[, Z])``; no unit.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The object's UIDs.

    Raises:
        InputError: The source has no place in the patient, or the file exists or cannot be written.
    """
    refuse_without_place(source)
    frames = source.on_planes(scores.astype(np.float32), order=1).astype(np.float32, copy=False)
    low, high = float(frames.min()), float(frames.max())
    own = identity(source, producer, "pmap", frames.tobytes())
    with discreet():
        import highdicom
        from highdicom.sr.coding import CodedConcept

        mapping = highdicom.pm.RealWorldValueMapping(
            lut_label="ANOMALY_SCORE",
            lut_explanation="Anomaly score; larger is more abnormal",
            unit=CodedConcept("1", "UCUM", "no units"),
            value_range=(low, high),
            slope=1.0,
            intercept=0.0,
            quantity_definition=CodedConcept("246262008", "SCT", "Score"),
        )
        window = highdicom.VOILUTTransformation(
            window_center=(low + high) / 2,
            window_width=max(high - low, 1e-6),
            voi_lut_function=highdicom.VOILUTFunctionValues.LINEAR_EXACT,
        )
        dataset = highdicom.pm.ParametricMap(
            source_images=source.stand_ins(),
            pixel_array=frames,
            contains_recognizable_visual_features=source.recognisable == "YES",
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[window],
            content_label="ANOMALY_MAP",
            content_description=f"Anomaly map. {RESEARCH_ONLY}",
            **equipment(own, producer),
        )
        dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy(source)]
        dataset.ContentCreatorName = "medgen^"
        cite_frames(dataset, source)
        dataset.FloatPixelData = frames.astype("<f4").tobytes()
        finish(dataset, source, own)
        return save(dataset, path, own, overwrite=overwrite)


def refuse_without_place(source: Source) -> None:
    """Raise if no map can be made: its frames must lie in a frame of reference (A.75.3).

    Raises:
        InputError: The source is a picture without a position, such as a plain radiograph.
    """
    if source.frame_of_reference_uid is None:
        raise InputError(
            "a Parametric Map must say where it lies in the patient, and the scan does not",
            "Leave out pmap; seg, sr and sc can be made.",
        )


def _anatomy(source: Source) -> Dataset:
    """Which side of the body, and no claim about which organ (PS3.3 C.7.6.16.2.8)."""
    anatomy = Dataset()
    anatomy.FrameLaterality = source.laterality or "U"  # unpaired
    anatomy.AnatomicRegionSequence = [code("85756007", "SCT", "Tissue")]
    return anatomy
