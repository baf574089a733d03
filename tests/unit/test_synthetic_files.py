"""Every format says by itself that an image is synthetic, and gives its pixels back."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pydicom
import pytest

from medgen.errors import InputError
from medgen.io import read
from medgen.io.dicom_picture import write_dicom_picture
from medgen.io.synthetic import (
    label_colours,
    read_facts,
    write_label_png,
    write_png,
    write_synthetic_nifti,
)
from medgen.volume import Geometry

FACTS = {"model": "m", "seed": 3, "condition": "größer"}


def picture(channels: int) -> np.ndarray:
    shape = (channels, 21, 34)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_png(tmp_path: Path, channels: int) -> None:
    path = write_png(tmp_path / "x.png", picture(channels), FACTS)
    assert np.array_equal(read(path).voxels, picture(channels))
    assert read_facts(path) == {"synthetic": True, **FACTS}
    with PIL.Image.open(path) as image:
        assert "SYNTHETIC" in image.info["Description"]
    again = write_png(tmp_path / "y.png", picture(channels), FACTS)
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(InputError, match="exists"):
        write_png(path, picture(channels), FACTS)


def test_label_png_keeps_values_and_shows_colours(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 12, (21, 34))
    path = write_label_png(tmp_path / "x.png", labels, FACTS)
    with PIL.Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image).T, labels)
        shown = np.asarray(image.convert("RGB")).transpose(1, 0, 2)
    assert np.array_equal(shown, np.array(label_colours(12))[labels])
    with pytest.raises(InputError, match="0 to 255"):
        write_label_png(tmp_path / "y.png", labels + 250, FACTS)


def test_nifti(tmp_path: Path) -> None:
    grid = Geometry((4, 5, 6), np.diag([1.0, 1.0, 2.0, 1.0]))
    array = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    path = write_synthetic_nifti(tmp_path / "x.nii.gz", array, grid, FACTS)
    image = nib.load(path)
    assert b"SYNTHETIC" in image.header["descrip"].tobytes()
    assert np.array_equal(np.asarray(image.dataobj), array)
    beside = json.loads((tmp_path / "x.json").read_text())
    assert beside["synthetic"] is True
    assert read_facts(path) == beside
    again = write_synthetic_nifti(tmp_path / "y.nii.gz", array, grid, FACTS)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(("channels", "modality", "part"), [
    (3, "GM", "COLON"), (1, "DX", "CHEST"), (3, "OT", ""),
])  # fmt: skip
def test_dicom(tmp_path: Path, channels: int, modality: str, part: str) -> None:
    options = {"seed": "s", "modality": modality, "body_part": part, "comment": "SYNTHETIC"}
    path = write_dicom_picture(
        tmp_path / "x.dcm", picture(channels), spacing_mm=(0.5, 0.25), **options
    )
    dataset = pydicom.dcmread(path)
    assert dataset.SyntheticData == "YES"
    assert str(dataset.PatientID) == "SYNTHETIC"
    assert list(dataset.PixelSpacing) == [0.25, 0.5]
    assert np.array_equal(read(path).voxels, picture(channels))
    other = write_dicom_picture(tmp_path / "y.dcm", picture(channels), number=2, **options)
    second = pydicom.dcmread(other)
    assert second.SeriesInstanceUID == dataset.SeriesInstanceUID
    assert second.SOPInstanceUID != dataset.SOPInstanceUID


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dicom_is_valid(tmp_path: Path) -> None:
    path = write_dicom_picture(tmp_path / "x.dcm", picture(3), seed="s", body_part="COLON")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    # Younger than the validator's dictionary.
    assert [line for line in errors if "(0x0008,0x001c)" not in line] == []


def test_facts_are_found_only_where_medgen_put_them(tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(plain)
    assert read_facts(plain) is None
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert read_facts(tmp_path / "broken.png") is None
    assert read_facts(tmp_path / "scan.nii.gz") is None
