"""The one place that reads who a patient is: only for `--keep-ids`, never for logs or names."""

from __future__ import annotations

import pydicom

from medgen.io.dicom_files import UNREADABLE, quiet
from medgen.io.walk import Location, opened


def identity_of(location: Location) -> dict[str, str]:
    """PatientID and StudyInstanceUID of a DICOM object; empty for anything else."""
    try:
        with quiet(), opened(location) as stream:
            header = pydicom.dcmread(
                stream, stop_before_pixels=True, force=True,
                specific_tags=["PatientID", "StudyInstanceUID"],
            )  # fmt: skip
    except UNREADABLE:
        return {}
    found = {"patient_id": header.get("PatientID"), "study_uid": header.get("StudyInstanceUID")}
    return {key: str(value) for key, value in found.items() if value}
