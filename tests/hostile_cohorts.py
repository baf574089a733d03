"""Cohorts of small heads for the cohort engine: as DICOM archive, NIfTI files and BIDS data set.

A few phantoms are drawn and varied cheaply, so that hundreds of cases take seconds.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from hostile_objects import Array, Stack, Who, classic, save_to, stack
from pydicom import config
from pydicom.dataset import Dataset

from medgen import phantoms

SHAPE, SPACING_MM = (24, 28, 20), 6.0
DRAWN = 6  # phantoms; every third has a lesion
LESION_RADIUS_MM = 14.0


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        path: Folder of its DICOM objects, or its NIfTI file.
        patient: PatientID, or BIDS' subject label.
        lesion: Whether a lesion was planted.
    """

    path: Path
    patient: str
    lesion: bool


@lru_cache(maxsize=32)
def _drawn(seed: int, number: int, contrast: str) -> Array:
    lesion = LESION_RADIUS_MM if number % 3 == 0 else None
    head = phantoms.brain(
        SHAPE, spacing_mm=SPACING_MM, seed=100 * seed + number, contrast=contrast,  # type: ignore[arg-type]
        lesion_radius_mm=lesion,
    )  # fmt: skip
    return head.image.voxels[0]


def values(seed: int, number: int, contrast: str = "flair") -> Array:
    """Voxels of a case ``(X, Y, Z)``, RAS, whole numbers: no two cases are alike."""
    rng = np.random.default_rng([seed, number])
    drawn = _drawn(seed, number % DRAWN, contrast)
    varied = drawn * rng.uniform(0.8, 1.2) * (1 + 0.02 * rng.standard_normal(drawn.shape))
    return np.where(drawn > 0, varied, 0).round().clip(0, 4095).astype(np.int64)


def has_lesion(number: int) -> bool:
    """Whether a case of this number shows a lesion."""
    return number % DRAWN % 3 == 0


def _planes(voxels: Array) -> Stack:
    """The same voxels as axial planes: columns run to the left, rows to the back."""
    return stack(voxels[::-1, ::-1], spacing=(SPACING_MM, SPACING_MM, SPACING_MM))


def cohort(folder: Path, cases: int, seed: int = 0) -> list[Case]:
    """An archive of single-series MR head studies, a folder with the patient's name each."""
    with config.disable_value_validation():
        return [_study(folder, number, seed) for number in range(cases)]


def _study(folder: Path, number: int, seed: int) -> Case:
    who = Who(seed, patient=f"MRN-{number:05d}", study=f"study {number}", description="FLAIR")
    place = folder / f"DOE^JANE {number:05d}" / "FLAIR"
    place.mkdir(parents=True)
    planes = _planes(values(seed, number))
    d = classic(replace(planes, origins=planes.origins[:1]), who)[0]
    d.BodyPartExamined, d.ProtocolName = "HEAD", "t2_flair"
    d.PatientName = f"Doe^Jane {number}"
    del d.Laterality  # a head is not paired
    d.ScanningSequence, d.InversionTime = "IR", "2500"
    for plane, changed in enumerate(_slices(d, planes)):
        (place / f"IM{plane:04d}").write_bytes(changed)
    return Case(place, who.patient, has_lesion(number))


def _slices(d: Dataset, planes: Stack) -> Iterator[bytes]:
    """The files of all slices: one is written, and in the others its bytes are exchanged.

    That is twenty times as fast as writing each, and works because all texts keep their lengths.
    """

    def texts(plane: int) -> tuple[str, str, str]:
        x, y, z = planes.origins[plane]
        uid = f"{d.SeriesInstanceUID[:59]}.{plane + 100}"
        return uid, f"{x}\\{y}\\{z:+09.2f}", f"{plane + 10}"

    uid, position, number = texts(0)
    d.SOPInstanceUID, d.InstanceNumber = uid, number
    d.ImagePositionPatient = position.split("\\")
    with io.BytesIO() as stream:
        save_to(d, stream)
        first = stream.getvalue()
    for plane in range(len(planes.origins)):
        whole = first[: -len(d.PixelData)]
        for before, after in zip((uid, position, number), texts(plane), strict=True):
            mark = b"\x20\0\x13\0IS\x02\0" if before == number else b""
            assert mark + before.encode() in whole
            whole = whole.replace(mark + before.encode(), mark + after.encode())
        yield whole + planes.values[..., plane].T.astype("<u2").tobytes()


def nifti_cohort(folder: Path, cases: int, seed: int = 0) -> list[Case]:
    """A folder of NIfTI files."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(cases):
        path = _nifti(folder / f"case-{number:04d}_FLAIR.nii.gz", values(seed, number))
        made.append(Case(path, f"case-{number:04d}", has_lesion(number)))
    return made


def _nifti(path: Path, voxels: Array) -> Path:
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = [-SPACING_MM * (n - 1) / 2 for n in voxels.shape]
    image = nib.Nifti1Image(voxels.astype(np.int16), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


def bids_dataset(folder: Path, subjects: int = 2, sessions: int = 2, seed: int = 0) -> list[Case]:
    """A BIDS data set: T1w and FLAIR of every session, with sidecars.

    Returns:
        The FLAIR scans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"Name": "Synthetic heads", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    (folder / "README").write_text("Synthetic heads drawn by formulas.\n")
    labels = [f"sub-{number + 1:02d}" for number in range(subjects)]
    (folder / "participants.tsv").write_text("\n".join(["participant_id", *labels]) + "\n")
    made = []
    for subject, label in enumerate(labels):
        for session in range(sessions):
            number = subject * sessions + session
            stem = f"{label}_ses-{session + 1:02d}"
            place = folder / label / f"ses-{session + 1:02d}" / "anat"
            place.mkdir(parents=True, exist_ok=True)
            for suffix, contrast in (("T1w", "t1"), ("FLAIR", "flair")):
                path = _nifti(place / f"{stem}_{suffix}.nii.gz", values(seed, number, contrast))
                sidecar = {
                    "Modality": "MR",
                    "MagneticFieldStrength": 3,
                    "SeriesDescription": suffix,
                }
                (place / f"{stem}_{suffix}.json").write_text(json.dumps(sidecar))
            made.append(Case(path, label, has_lesion(number)))
    return made
