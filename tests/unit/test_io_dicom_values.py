"""Stored numbers to real ones: bits, overlays, tables, maps and padding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from medgen import io
from medgen.errors import InputError
from medgen.io import dicom_decoders
from medgen.volume import Volume

SHAPE = (6, 5, 3)


def write(folder: Path, edit: Callable[[Dataset, int], Any]) -> Path:
    volume = Volume.from_array(np.zeros(SHAPE, np.uint16), np.diag([-1.0, -1, 2, 1]))
    for number, path in enumerate(io.write_dicom_series(folder, volume, seed="v")):
        d = pydicom.dcmread(path)
        edit(d, number)
        d.save_as(path)
    return folder


def stored(d: Dataset, number: int, low: int, high: int, dtype: str = "<u2") -> np.ndarray:
    """Put random numbers in; return them ``(columns, rows)``."""
    values = np.random.default_rng(number).integers(low, high, SHAPE[:2])
    d.PixelData = np.ascontiguousarray(values.T).astype(dtype).tobytes()
    return values


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 7, 10, 12, 15, 16])
def test_bits_beyond_the_stored_ones_do_not_count(tmp_path: Path, bits: int, signed: bool) -> None:
    """They may hold overlays, and need not repeat the sign."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    expected = np.zeros(SHAPE)

    def edit(d: Dataset, number: int) -> None:
        d.BitsStored, d.HighBit, d.PixelRepresentation = bits, bits - 1, int(signed)
        values = stored(d, number, low, high)
        expected[..., number] = values
        noise = np.random.default_rng(9).integers(0, 2**16, SHAPE[:2]) & ~(2**bits - 1)
        mixed = (values & (2**bits - 1)) | noise
        d.PixelData = np.ascontiguousarray(mixed.T).astype("<u2").tobytes()

    assert np.array_equal(io.read(write(tmp_path / "s", edit)).voxels[0], expected)


def test_bits_in_the_middle(tmp_path: Path) -> None:
    """HighBit need not be the last of BitsStored (PS3.5 8.1.1)."""
    expected = np.zeros(SHAPE)

    def edit(d: Dataset, number: int) -> None:
        d.BitsStored, d.HighBit = 8, 11
        values = np.random.default_rng(number).integers(0, 256, SHAPE[:2])
        expected[..., number] = values
        d.PixelData = np.ascontiguousarray((values << 4 | 0xF00F).T).astype("<u2").tobytes()

    assert np.array_equal(io.read(write(tmp_path / "s", edit)).voxels[0], expected)


@pytest.mark.parametrize("kind", ["u1", "i1", "u4", "i4"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_sizes_and_orders(tmp_path: Path, kind: str, syntax: str) -> None:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    limits = np.iinfo(kind)
    expected = np.zeros(SHAPE)
    folder = write(tmp_path / "s", lambda d, n: None)
    for number, path in enumerate(sorted(folder.iterdir())):
        d = pydicom.dcmread(path)
        d.BitsAllocated = d.BitsStored = limits.bits
        d.HighBit, d.PixelRepresentation = limits.bits - 1, int(kind[0] == "i")
        expected[..., number] = stored(d, number, limits.min, limits.max, order + kind)
        d["PixelData"].VR = "OW"
        if limits.bits == 8 and order == ">":  # bytes travel in words (PS3.5 A.3)
            d.PixelData = np.frombuffer(d.PixelData, "<u2").astype(">u2").tobytes()
        d.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, d, implicit_vr=order == "<", little_endian=order == "<")
    volume = io.read(folder)
    assert np.array_equal(volume.voxels[0], expected.astype(np.float32))
    if limits.bits == 8:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(sorted(folder.iterdir())[1])))
        assert np.array_equal(image[0].T, volume.voxels[0][..., 1])


def test_real_world_map_stands_in_for_a_missing_rescale(tmp_path: Path) -> None:
    def edit(d: Dataset, number: int) -> None:
        stored(d, number, 0, 100)
        line = Dataset()
        line.RealWorldValueSlope, line.RealWorldValueIntercept = 0.25, -3.0
        line.RealWorldValueFirstValueMapped, line.RealWorldValueLastValueMapped = 0, 100
        d.RealWorldValueMappingSequence = [line]
        if number == 2:  # where both stand, the rescale does
            d.RescaleSlope, d.RescaleIntercept = "2", "1"

    voxels = io.read(write(tmp_path / "s", edit)).voxels[0]
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 100, SHAPE[:2])
        expected = values * 2 + 1 if number == 2 else values * 0.25 - 3
        assert np.allclose(voxels[..., number], expected)


def test_real_world_table(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=50)

    def edit(d: Dataset, number: int) -> None:
        stored(d, number, 10, 60)
        mapping = Dataset()
        mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 10, 59
        mapping.RealWorldValueLUTData = table.tolist()
        d.RealWorldValueMappingSequence = [mapping]

    voxels = io.read(write(tmp_path / "s", edit)).voxels[0]
    values = np.random.default_rng(1).integers(10, 60, SHAPE[:2])
    assert np.allclose(voxels[..., 1], table[values - 10])


@pytest.mark.parametrize(
    ("padding", "kept"), [(30_000, False), (0, True), (-2000, True)],
)  # fmt: skip
def test_padding_of_ct_never_shines(tmp_path: Path, padding: int, kept: bool) -> None:
    """Above every measured value it becomes the smallest; below it stays, as other readers do."""

    def edit(d: Dataset, number: int) -> None:
        d.SOPClassUID, d.Modality, d.PixelRepresentation = CTImageStorage, "CT", 1
        d.RescaleSlope, d.RescaleIntercept = "1", "-1024"
        values = stored(d, number, 24, 3000, "<i2").T
        values[0] = padding
        d.PixelData = values.astype("<i2").tobytes()
        # Writers that take the element for unsigned
        d.add_new("PixelPaddingValue", "US", padding % 2**16)

    voxels = io.read(write(tmp_path / "s", edit)).voxels[0]
    expected = float(padding - 1024) if kept else float(voxels[:, 1:].min())
    assert (voxels[:, 0] == expected).all()
    assert voxels[:, 1:].min() >= -1000


def test_modality_table(tmp_path: Path) -> None:
    table = np.random.default_rng(0).integers(0, 5000, 64)

    def edit(d: Dataset, number: int) -> None:
        stored(d, number, 0, 64)
        lut = Dataset()
        lut.LUTDescriptor, lut.ModalityLUTType = [64, 0, 16], "US"
        lut.LUTData = table.tolist()
        lut["LUTData"].VR = "US"
        d.ModalityLUTSequence = [lut]

    voxels = io.read(write(tmp_path / "s", edit)).voxels[0]
    assert np.array_equal(
        voxels[..., 2], table[np.random.default_rng(2).integers(0, 64, SHAPE[:2])]
    )


def test_infinite_values_are_refused(tmp_path: Path) -> None:
    def edit(d: Dataset, number: int) -> None:
        stored(d, number, 1, 9)
        d.RescaleSlope, d.RescaleIntercept = "1e300", "0"

    with pytest.raises(InputError, match="infinite"):
        io.read(write(tmp_path / "s", edit))


def broken(syntax: str) -> Callable[[Dataset, int], None]:
    def edit(d: Dataset, number: int) -> None:
        d.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        d["PixelData"].is_undefined_length = True
        d.file_meta.TransferSyntaxUID = syntax

    return edit


def test_what_decoders_lack_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be decoded: it is damaged"):
        io.read(write(tmp_path / "a", broken(JPEGLosslessSV1)))
    with pytest.raises(InputError, match="no decoder is installed for MPEG") as caught:
        io.read(write(tmp_path / "b", broken(MPEG2MPML)))
    assert "medgen[codecs]" in str(caught.value.hint)


def test_a_stream_larger_than_its_header_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(d: Dataset, number: int) -> None:
        stored(d, number, 0, 1000)
        d.compress(JPEGLSLossless, generate_instance_uid=False)
        data = bytearray(d.PixelData)
        at = data.find(b"\xff\xf7")
        data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
        d.PixelData = bytes(data)

    folder = write(tmp_path / "s", edit)
    monkeypatch.setattr(dicom_decoders, "iter_pixels", lambda *a, **k: pytest.fail("decoded"))
    with pytest.raises(InputError, match="damaged"):
        io.read(folder)


def gdcm_plugin(name: str) -> tuple[Path, np.ndarray]:
    """One of pydicom's files, and what the other binding of GDCM makes of it."""
    pytest.importorskip("gdcm")
    path = Path(str(get_testdata_file(name, download=False)))
    return path, pixel_array(pydicom.dcmread(path), decoding_plugin="gdcm")


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "GDCMJ2K_TextGBR.dcm"])
def test_lossless_pictures_are_decoded_as_by_another_binding(name: str) -> None:
    path, reference = gdcm_plugin(name)
    assert np.array_equal(io.read(path).voxels, reference.transpose(2, 1, 0))


def test_jpeg_of_twelve_bits_agrees_with_simpleitk() -> None:
    path = str(get_testdata_file("JPGExtended.dcm", download=False))
    reference = sitk.GetArrayFromImage(sitk.ReadImage(path))[0]
    assert np.allclose(io.read(path).voxels[0], reference.T)


DAMAGE = """
import sys, random
from pathlib import Path
from medgen import io
from medgen.errors import InputError
data, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
rng = random.Random(0)
for _ in range(40):
    changed = bytearray(data)
    for _ in range(3):
        changed[rng.randrange(len(data) // 2, len(data))] = rng.randrange(256)
    target.write_bytes(changed)
    try:
        io.read(target)
    except InputError:
        pass
print("alive")
"""


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "JPEG-lossy.dcm", "693_J2KI.dcm"])
def test_damaged_streams_do_not_end_the_process(tmp_path: Path, name: str) -> None:
    path = str(get_testdata_file(name, download=False))
    command = [sys.executable, "-c", DAMAGE, path, str(tmp_path / "x.dcm")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done.stderr[-500:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_series_needs_less_than_three_times_its_size(tmp_path: Path) -> None:
    shape = (256, 256, 160)
    values = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    io.write_dicom_series(tmp_path / "s", Volume.from_array(values, np.eye(4)), seed="m")
    code = (
        "import sys; from medgen import io\n"
        "import medgen.io.dicom\n"
        "def peak():\n"
        "    lines = open('/proc/self/status')\n"
        "    return int(next(s for s in lines if s.startswith('VmHWM')).split()[1])\n"
        "before = peak()\n"
        "io.read(sys.argv[1])\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) * 1024 < 1.5 * 4 * np.prod(shape)
