"""The mask of the findings as a DICOM Segmentation (PS3.3 A.51)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import pack_bits

from medgen.io.dicom_out.common import (
    RESEARCH_ONLY,
    Producer,
    Written,
    cite_frames,
    discreet,
    equipment,
    finish,
    identity,
    save,
)
from medgen.io.dicom_out.source import Source

SEGMENT_LABEL = "anomaly"
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
_COLOUR = (64, 224, 208)  # as the outlines of the overview


def write_segmentation(
    path: str | os.PathLike[str],
    source: Source,
    producer: Producer,
    mask: NDArray[np.bool_],
    *,
    overwrite: bool = False,
) -> Written:
    """Write one binary segment with all findings.

    Every source slice gets a frame, an empty one too: it was looked at, and nothing was found.

    Args:
        path: The file to write.
        source: The series, from :func:`~medgen.io.dicom_out.open_source`.
        producer: What made the mask.
        mask: Voxels of the findings on the volume's grid, ``(X, Y[, Z])`` bool.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The object's UIDs, for the report to cite.

    Raises:
        InputError: The file exists or cannot be written.
    """
    frames = source.on_planes(mask.astype(np.uint8), order=0) > 0
    own = identity(source, producer, "seg", np.packbits(frames).tobytes())
    with discreet():
        import highdicom

        dataset = highdicom.seg.Segmentation(
            source_images=source.stand_ins(),
            pixel_array=frames.astype(np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(producer, own.uid("tracking"))],
            omit_empty_frames=False,
            content_label="ANOMALY_MASK",
            content_description=f"Anomaly mask. {RESEARCH_ONLY}",
            **equipment(own, producer),
        )
        dataset.ContentCreatorName = "medgen^"
        cite_frames(dataset, source)
        dataset.PixelData = pack_bits(frames.astype(np.uint8))
        if source.frame_of_reference_uid is None:
            dataset.PatientOrientation = ""  # unknown, but it must be there (C.7.6.1)
        finish(dataset, source, own)
        return save(dataset, path, own, overwrite=overwrite)


def _segment(producer: Producer, tracking_uid: str) -> Any:
    """The one class of finding there is."""
    import highdicom
    from highdicom.sr.coding import CodedConcept

    return highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=SEGMENT_LABEL,
        segmented_property_category=CodedConcept(*ABNORMAL),
        segmented_property_type=CodedConcept(*ABNORMAL),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=producer.algorithm,
            version=producer.version[:64],
            family=CodedConcept("123110", "DCM", "Artificial Intelligence"),
            source="medgen",
        ),
        tracking_uid=tracking_uid,
        tracking_id=SEGMENT_LABEL,
        display_color=highdicom.color.CIELabColor.from_rgb(*_COLOUR),
    )
