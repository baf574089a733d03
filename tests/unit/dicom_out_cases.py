"""Scans of known geometry, results on them, and readers that share no code with medgen."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hostile_dicom
import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray

from medgen import io
from medgen.io import dicom_out
from medgen.volume import Volume

TOOLS = Path(sys.executable).parent
PRODUCER = dicom_out.Producer("tiny", "1.2.3", "ab" * 32)
REASONS = {1: "residual 0.8 (97 %) and intensity prior (3 %); darker than restored by −0.2"}
RESULT = dicom_out.ScanResult(0.75, 0.1, 0.5, "half of something")

# Kind of archive (see hostile_dicom), and which of its images.
GRIDS = {
    **{f"orientation {n:02d} {'up' if n % 2 else 'down'}": None for n in range(0, 24, 5)},
    "oblique": None,
    "anisotropic": None,
    "nearly even": None,
    "one slice": None,
    "echoes": 1,
    "enhanced MR, shuffled": None,
    "enhanced CT": None,
    "enhanced b-values": 1,
    "mosaic": None,
    "big endian": None,
    "deflated": None,
    "no preamble": None,
    "PET START": None,
    "DICOMDIR": None,
    "zip with one name": None,
}
RESAMPLED = {"tilted gantry": None, "uneven": None}
FLAT = {"MONOCHROME1": None}  # a radiograph: no place in the patient


class Spot(NamedTuple):
    """A finding, as far as a report needs one."""

    label: int
    volume_mm3: float
    peak: float
    mean: float
    centroid_voxel: tuple[float, ...]
    centroid_mm: tuple[float, float, float]


def scan(kind: str, folder: Path, frame: int | None = None) -> Volume:
    """One image of an archive, read."""
    return io.read(hostile_dicom.build(kind, folder / "archive").folder, frame=frame)


def voxel_places(volume: Volume) -> NDArray[np.float64]:
    """RAS+ mm of every voxel, ``(3, *shape)``, from the affine alone."""
    shape = volume.geometry.shape
    indices = np.indices(shape).reshape(len(shape), -1)
    affine = volume.affine
    places = affine[:3, : len(shape)] @ indices + affine[:3, 3:]
    return places.reshape(3, *shape)


def spots(volume: Volume) -> list[Spot]:
    """Two findings with numbers that can be told apart."""
    found = []
    for label in (1, 2):
        voxel = tuple(size / (2 + label) for size in volume.geometry.shape)
        x, y, z = volume.geometry.to_world(voxel).tolist()
        found.append(
            Spot(label, 299.99999999999994 * label, 0.9 / label, 0.8 / label, voxel, (x, y, z))
        )
    return found


KINDS = ("seg", "pmap", "sr", "sc")


def write_all(
    volume: Volume,
    folder: Path,
    mask: Any = None,
    scores: Any = None,
    kinds: Sequence[str] = KINDS,
) -> dict[str, Path]:
    """The objects of a scan: all that it can have, or some."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shape = volume.geometry.shape
    mask = rng.random(shape) > 0.8 if mask is None else mask
    scores = rng.random(shape, dtype=np.float32) if scores is None else scores
    source = dicom_out.open_source(volume)
    kinds = [k for k in kinds if k != "pmap" or source.frame_of_reference_uid is not None]
    paths = {kind: folder / f"scan_{kind}.dcm" for kind in kinds}
    written = None
    if "seg" in paths:
        written = dicom_out.write_segmentation(paths["seg"], source, PRODUCER, mask)
    if "pmap" in paths:
        dicom_out.write_parametric_map(paths["pmap"], source, PRODUCER, scores)
    if "sr" in paths:
        found = spots(volume)
        dicom_out.write_measurement_report(
            paths["sr"], source, PRODUCER, RESULT, found, reasons=REASONS, segmentation=written
        )
    if "sc" in paths:
        picture = rng.integers(0, 256, (40, 51, 3), dtype=np.uint8)
        dicom_out.write_secondary_capture(paths["sc"], source, PRODUCER, picture)
    return paths


# --- independent readers ---------------------------------------------------------------------


def run(tool: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A tool of the dicom3tools or dcmqi packages."""
    command = [str(TOOLS / tool), *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def errors(path: Path) -> list[str]:
    """What the validator of dicom3tools calls an error."""
    done = run("dciodvfy", "-new", path)
    return [line for line in done.stderr.splitlines() if line.startswith("Error")]


def by_dcmqi(tool: str, path: Path, folder: Path) -> sitk.Image:
    """A Segmentation or Parametric Map as dcmqi converts it."""
    folder.mkdir(parents=True, exist_ok=True)
    done = run(tool, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd")
    assert done.returncode == 0, done.stdout + done.stderr
    (image,) = folder.glob("*.nrrd")
    return sitk.ReadImage(str(image))


def report_by_dcmqi(path: Path, folder: Path) -> list[dict[str, Any]]:
    """The measurement groups of a report as dcmqi reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    done = run("tid1500reader", "--inputDICOM", path, "--outputMetadata", folder / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    groups: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())["Measurements"]
    return groups


class Frame(NamedTuple):
    """One frame of a multi-frame object, from the bytes and the definitions of the standard."""

    values: NDArray[Any]  # (rows, columns)
    places: NDArray[np.float64]  # RAS+ mm (3, rows, columns)
    origin: NDArray[np.float64]  # LPS mm
    cited: tuple[str, int | None]  # instance UID, frame number


def frames(path: Path) -> list[Frame]:
    """Every frame of a Segmentation or Parametric Map (PS3.3 C.7.6.2.1.1), by pydicom alone."""
    d = pydicom.dcmread(path)
    rows, columns, count = d.Rows, d.Columns, int(d.NumberOfFrames)
    if "FloatPixelData" in d:
        pixels = np.frombuffer(d.FloatPixelData, "<f4")
    else:
        pixels = np.unpackbits(np.frombuffer(d.PixelData, np.uint8), bitorder="little")
    pixels = pixels[: count * rows * columns].reshape(count, rows, columns)
    shared = d.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    row, column = np.indices((rows, columns))
    found = []
    for values, own in zip(pixels, d.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        places = (
            origin[:, None, None]
            + cosines[:3, None, None] * between_columns * column
            + cosines[3:, None, None] * between_rows * row
        )
        (image,) = own.DerivationImageSequence[0].SourceImageSequence
        cited = image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")
        ras = places * np.array([-1, -1, 1])[:, None, None]
        found.append(Frame(values, ras, origin, cited))
    return found
