"""Whatever happens to a file's bytes, it is read or refused in plain words; never a traceback."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGLSLossless, RLELossless

from medgen import io
from medgen.errors import InputError
from medgen.volume import Volume

AFFINE = np.diag([-1.5, -1.25, 2, 1])
Damage = list[tuple[float, int]]
# Where (as a part of the part that is hit) and with which byte.
damages = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6)


def nifti(path: Path) -> None:
    io.write_nifti(path, volume().voxels[0], volume().geometry)


def volume() -> Volume:
    values = np.random.default_rng(0).integers(0, 200, (8, 7, 6)).astype(np.int16)
    return Volume.from_array(values, AFFINE)


def picture(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
    PIL.Image.fromarray(noise).save(path)


def dicom(syntax: str | None) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        files = io.write_dicom_series(path.with_suffix(".series"), volume(), seed="x")
        dataset = pydicom.dcmread(files[0])
        if syntax:
            dataset.compress(syntax)
        dataset.save_as(path)

    return make


def jpeg2000(path: Path) -> None:
    path.write_bytes(Path(str(get_testdata_file("MR_small_jp2klossless.dcm"))).read_bytes())


def zipped(path: Path) -> None:
    files = io.write_dicom_series(path.with_suffix(".series"), volume(), seed="x")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)


# name: how to make it, and how many of its first bytes to damage (0: any)
KINDS: dict[str, tuple[Callable[[Path], None], int]] = {
    "header.nii": (nifti, 352),
    "packed.nii.gz": (nifti, 0),
    "plain.dcm": (dicom(None), 1600),
    "rle.dcm": (dicom(RLELossless), 1800),
    "jpeg_ls.dcm": (dicom(JPEGLSLossless), 1800),
    "jpeg_2000.dcm": (jpeg2000, 1300),
    "series.zip": (zipped, 0),
    "picture.png": (picture, 60),
    "picture.jpg": (picture, 500),
    "picture.tif": (picture, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_bytes(name: str, tmp_path: Path) -> None:
    make, head = KINDS[name]
    make(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    broken = tmp_path / f"broken_{name}"
    logging.disable(logging.WARNING)

    @settings(max_examples=60)
    @given(damages, st.one_of(st.just(1.0), st.floats(0, 1)))
    def damage(hits: Damage, part: float) -> None:
        data = bytearray(whole)
        size = min(head or len(data), len(data))
        for place, value in hits:
            data[min(int(place * size), size - 1)] = value
        broken.write_bytes(data[: int(len(data) * part)])
        for use in (io.read, io.describe):
            try:
                use(broken)
            except InputError as error:
                assert error.message

    try:
        damage()
    finally:
        logging.disable(logging.NOTSET)
