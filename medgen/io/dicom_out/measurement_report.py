"""The findings as a structured report: DICOM TID 1500, Measurement Report (PS3.16)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from medgen.io.dicom_out.common import (
    RESEARCH_ONLY,
    Identity,
    Producer,
    Written,
    discreet,
    equipment,
    finish,
    identity,
    save,
)
from medgen.io.dicom_out.segmentation import ABNORMAL
from medgen.io.dicom_out.source import Source

_Coded = tuple[str, str, str]  # value, scheme, meaning
_SCHEME = "99MEDGEN"  # what no public scheme has a code for
_P_VALUE = ("P_VALUE", _SCHEME, "Conformal p-value of the scan score")
_SCORE = ("246262008", "SCT", "Score")
_THRESHOLD = ("122411", "DCM", "Threshold Value")
_COMMENT = ("121106", "DCM", "Comment")
_CENTER = ("128138", "DCM", "Center of Mass")
_MEAN, _PEAK = ("373098007", "SCT", "Mean"), ("56851009", "SCT", "Maximum")
_VOLUME, _AREA = ("118565006", "SCT", "Volume"), ("42798000", "SCT", "Area")
_MM3, _MM2 = ("mm3", "UCUM", "cubic millimeter"), ("mm2", "UCUM", "square millimeter")
_PIXELS, _NO_UNIT = ("{pixels}", "UCUM", "pixels"), ("1", "UCUM", "no units")
_PROCEDURES = {
    "MR": ("113091000", "SCT", "Magnetic resonance imaging"),
    "CT": ("77477000", "SCT", "Computed tomography"),
}
_ANY_PROCEDURE = ("363679005", "SCT", "Imaging procedure")
_COORDINATES = "Coordinates are in the patient's frame of reference, in mm (LPS)."
# RAS+, in which findings are measured, to DICOM's LPS.
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


class FindingLike(Protocol):
    """One connected finding, as :class:`medgen.scoring.Finding` has it."""

    @property
    def label(self) -> int:
        """Number of the finding, from 1."""

    @property
    def volume_mm3(self) -> float:
        """Its volume; in 2-D the pixels count as thick as the slice."""

    @property
    def peak(self) -> float:
        """Highest score."""

    @property
    def mean(self) -> float:
        """Mean score."""

    @property
    def centroid_voxel(self) -> tuple[float, ...]:
        """Mean voxel index, one per axis."""

    @property
    def centroid_mm(self) -> tuple[float, float, float]:
        """The same point in RAS+ mm."""


@dataclass(frozen=True)
class ScanResult:
    """What holds for the scan as a whole.

    Attributes:
        score: Scan score, no unit; larger is more abnormal.
        p_value: Part of healthy scans that score this high or higher; None if not known.
        threshold: Map value from which a voxel counts.
        threshold_meaning: What that value stands for.
    """

    score: float
    p_value: float | None
    threshold: float
    threshold_meaning: str


def write_measurement_report(
    path: str | os.PathLike[str],
    source: Source,
    producer: Producer,
    result: ScanResult,
    findings: Sequence[FindingLike],
    *,
    reasons: Mapping[int, str] | None = None,
    segmentation: Written | None = None,
    overwrite: bool = False,
) -> Written:
    """Write scores and findings as Comprehensive 3D SR (PS3.3 A.35.13).

    Args:
        path: The file to write.
        source: The series, from :func:`~medgen.io.dicom_out.open_source`.
        producer: What made the findings.
        result: Score, threshold and what they mean.
        findings: One measurement group is written for each.
        reasons: By a finding's label, in words: what made it one. Written as its comment.
        segmentation: The mask of all findings, if it was written too.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The object's UIDs.

    Raises:
        InputError: The file exists or cannot be written.
    """
    facts = [_facts(finding) for finding in findings]
    reasons = reasons or {}
    seen = {
        "result": asdict(result), "findings": facts, "segmentation": segmentation,
        "reasons": {str(label): reason for label, reason in reasons.items()},
    }  # fmt: skip
    own = identity(source, producer, "sr", json.dumps(seen).encode())
    with discreet():
        import highdicom
        from highdicom.sr import MeasurementReport

        groups = [_scan_group(source, producer, result, own)]
        groups += [
            _group(source, producer, f, reasons.get(f.label), own, segmentation) for f in findings
        ]
        procedure = _PROCEDURES.get(source.modality, _ANY_PROCEDURE)
        report = MeasurementReport(
            observation_context=_observer(producer),
            procedure_reported=_concept(procedure),
            imaging_measurements=groups,
            title=_concept(("126000", "DCM", "Imaging Measurement Report")),
        )
        content = list(report[0].ContentSequence)
        measurements = content.pop()
        content += [_library(source), measurements, _text(_COMMENT, RESEARCH_ONLY)]
        report[0].ContentSequence = content
        dataset = highdicom.sr.Comprehensive3DSR(
            evidence=_evidence(source, segmentation),
            content=report[0],
            is_complete=True,
            coding_schemes=[_scheme()],
            **equipment(own, producer),
        )
        _drop_anchor(dataset)
        finish(dataset, source, own)
        return save(dataset, path, own, overwrite=overwrite)


def _facts(finding: FindingLike) -> list[Any]:
    return [finding.label, finding.volume_mm3, finding.peak, finding.mean, *finding.centroid_mm]


def _concept(coded: _Coded) -> Any:
    from highdicom.sr import CodedConcept

    value, scheme, meaning = coded
    return CodedConcept(value, scheme, meaning)


def _text(name: _Coded, value: str) -> Any:
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    return TextContentItem(_concept(name), value, RelationshipTypeValues.CONTAINS)


def _measurement(name: _Coded, value: float, unit: _Coded, derivation: _Coded | None = None) -> Any:
    from highdicom.sr import Measurement

    how = None if derivation is None else _concept(derivation)
    # 16 characters are all that the text of a number may have (PS3.5 6.2).
    value = float(f"{value:.9g}")
    return Measurement(_concept(name), value, _concept(unit), derivation=how)


def _observer(producer: Producer) -> Any:
    """The program that reports: no person has looked."""
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.uid import generate_uid

    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=_concept(("121007", "DCM", "Device")),
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=generate_uid(entropy_srcs=[producer.software, producer.sha256]),
                name=producer.algorithm,
                manufacturer_name="medgen",
                model_name=f"{producer.model} {producer.version}",
                serial_number=producer.sha256,
            ),
        )
    )


def _algorithm(producer: Producer) -> Any:
    from highdicom.sr import AlgorithmIdentification

    return AlgorithmIdentification(name=producer.algorithm, version=producer.version)


def _scan_group(source: Source, producer: Producer, result: ScanResult, own: Identity) -> Any:
    """TID 1501: what holds for the scan as a whole."""
    from highdicom.sr import MeasurementsAndQualitativeEvaluations, TrackingIdentifier

    measurements = [
        _measurement(_SCORE, result.score, _NO_UNIT),
        _measurement(_THRESHOLD, result.threshold, _NO_UNIT),
    ]
    comments = [f"Threshold: {result.threshold_meaning}"]
    if result.p_value is not None:
        measurements.append(_measurement(_P_VALUE, result.p_value, _NO_UNIT))
        comments.append("p-value: part of the healthy reference scans that score this high or more")
    else:
        comments.append("The scan score was not calibrated; it has no p-value.")
    if source.frame_of_reference_uid is not None:
        comments.append(_COORDINATES)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=own.uid("scan"), identifier="whole scan"),
        algorithm_id=_algorithm(producer),
        measurements=measurements,
    )
    group[0].ContentSequence.extend([_text(_COMMENT, comment) for comment in comments])
    return group


def _group(
    source: Source,
    producer: Producer,
    finding: FindingLike,
    reason: str | None,
    own: Identity,
    segmentation: Written | None,
) -> Any:
    """TID 1411 with the segment that holds the finding, or TID 1501 without one."""
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(
            uid=own.uid(f"finding {finding.label}"), identifier=f"finding {finding.label}"
        ),
        "finding_type": _concept(ABNORMAL),
        "algorithm_id": _algorithm(producer),
        "measurements": [
            _size(source, finding),
            _measurement(_SCORE, finding.mean, _NO_UNIT, _MEAN),
            _measurement(_SCORE, finding.peak, _NO_UNIT, _PEAK),
        ],
    }
    group: Any
    if segmentation is None:
        group = MeasurementsAndQualitativeEvaluations(**common)
    else:
        group = VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=ReferencedSegment(
                sop_class_uid=segmentation.class_uid,
                sop_instance_uid=segmentation.instance_uid,
                segment_number=1,
                source_series=SourceSeriesForSegmentation(source.series_uid),
            ),
            **common,
        )
    # Both templates may be extended.
    group[0].ContentSequence.append(_centre(source, finding))
    if reason:
        group[0].ContentSequence.append(_text(_COMMENT, f"What made it a finding: {reason}"))
    return group


def _size(source: Source, finding: FindingLike) -> Any:
    """Volume; on a single slice the area, or the pixels if nobody knows how large they are."""
    volume = source.volume
    if volume.spatial_dims == 3:
        return _measurement(_VOLUME, finding.volume_mm3, _MM3)
    between_columns, between_rows = volume.geometry.spacing_mm
    pixels = finding.volume_mm3 / volume.geometry.voxel_volume_mm3
    if source.spacing_known:
        return _measurement(_AREA, pixels * between_columns * between_rows, _MM2)
    return _measurement(_AREA, pixels, _PIXELS)


def _centre(source: Source, finding: FindingLike) -> Any:
    """Where the finding lies: in the patient, or in the picture if it has no place in a patient."""
    from highdicom.sr import (
        RelationshipTypeValues,
        Scoord3DContentItem,
        ScoordContentItem,
        SourceImageForRegion,
    )

    contains = RelationshipTypeValues.CONTAINS
    if source.frame_of_reference_uid is not None:
        point = np.array([finding.centroid_mm]) * _RAS_TO_LPS
        return Scoord3DContentItem(
            _concept(_CENTER), "POINT", point, source.frame_of_reference_uid,
            relationship_type=contains,
        )  # fmt: skip
    reference = source.references[0]
    # Pixels are counted from the corner of the first one, not from its centre (C.10.5.1.1).
    point = np.array([finding.centroid_voxel[:2]]) + 0.5
    item = ScoordContentItem(_concept(_CENTER), "POINT", point, relationship_type=contains)
    image = SourceImageForRegion(
        reference.class_uid, reference.instance_uid,
        None if reference.frame is None else [reference.frame],
    )  # fmt: skip
    item.ContentSequence = Items([image])
    return item


def _library(source: Source) -> Any:
    """TID 1600: every source object, and what they have in common."""
    from highdicom.sr import (
        CodeContentItem,
        ContainerContentItem,
        ImageContentItem,
        RelationshipTypeValues,
        UIDRefContentItem,
    )

    contains, context = RelationshipTypeValues.CONTAINS, RelationshipTypeValues.HAS_ACQ_CONTEXT
    shared: list[Dataset] = [
        CodeContentItem(
            _concept(("121139", "DCM", "Modality")),
            _concept((source.modality, "DCM", _MODALITIES.get(source.modality, source.modality))),
            relationship_type=context,
        )
    ]
    if source.frame_of_reference_uid is not None:
        name = _concept(("112227", "DCM", "Frame of Reference UID"))
        shared.append(UIDRefContentItem(name, source.frame_of_reference_uid, context))
    source_name = _concept(("260753009", "SCT", "Source"))
    images = [
        ImageContentItem(source_name, class_uid, uid, relationship_type=contains)
        for uid, class_uid in source.instances.items()
    ]
    name = _concept(("126200", "DCM", "Image Library Group"))
    group = ContainerContentItem(name, relationship_type=contains)
    group.ContentSequence = Items([*shared, *images])
    name = _concept(("111028", "DCM", "Image Library"))
    library = ContainerContentItem(name, relationship_type=contains)
    library.ContentSequence = Items([group])
    return library


_MODALITIES = {
    "MR": "Magnetic Resonance", "CT": "Computed Tomography", "OT": "Other Modality",
    "PT": "Positron emission tomography", "US": "Ultrasound", "CR": "Computed Radiography",
    "DX": "Digital Radiography", "MG": "Mammography", "NM": "Nuclear Medicine",
}  # fmt: skip


def _evidence(source: Source, segmentation: Written | None) -> list[Dataset]:
    """Everything the report cites, after a stand-in that lends its patient and study."""
    cited = [(class_uid, uid, source.series_uid) for uid, class_uid in source.instances.items()]
    evidence = source.stand_ins()[:1]
    for class_uid, uid, series_uid in (*cited, *([segmentation] if segmentation else [])):
        d = Dataset()
        d.SOPClassUID, d.SOPInstanceUID = class_uid, uid
        d.StudyInstanceUID, d.SeriesInstanceUID = source.study_uid, series_uid
        evidence.append(d)
    return evidence


def _drop_anchor(dataset: Dataset) -> None:
    """Take the stand-in, which is no object, out of the evidence again."""
    for study in dataset.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            series.ReferencedSOPSequence = [
                item
                for item in series.ReferencedSOPSequence
                if item.ReferencedSOPInstanceUID != "2.25.1"
            ]


def _scheme() -> Any:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        _SCHEME, name="medgen private codes", responsible_organization="medgen"
    )
