"""DICOM out: what was found in a series or made of it, as objects that a PACS stores beside it.

One short module per kind of object, and what they share: the source they cite
(:mod:`~medgen.io.dicom_out.source`), what is copied from its patient and study
(:mod:`~medgen.io.dicom_out.patient`), and who made them (:mod:`~medgen.io.dicom_out.common`).

Examples:
    >>> source = open_source(medgen.io.read("dicom_folder"))
    >>> producer = Producer("brain-mr", "1.0.0", package.sha256)
    >>> mask = write_segmentation("scan_seg.dcm", source, producer, detection.mask)
"""

from medgen.io.dicom_out.common import Producer, Written
from medgen.io.dicom_out.derived_series import Derivation, WrittenSeries, write_derived_series
from medgen.io.dicom_out.measurement_report import ScanResult, write_measurement_report
from medgen.io.dicom_out.parametric_map import refuse_without_place, write_parametric_map
from medgen.io.dicom_out.secondary_capture import write_secondary_capture
from medgen.io.dicom_out.segmentation import write_segmentation
from medgen.io.dicom_out.source import Source, check_source, open_source, refuse_other_format

__all__ = [
    "Derivation", "Producer", "ScanResult", "Source", "Written", "WrittenSeries", "check_source",
    "open_source", "refuse_other_format", "refuse_without_place", "write_derived_series",
    "write_measurement_report",
    "write_parametric_map", "write_secondary_capture", "write_segmentation",
]  # fmt: skip
