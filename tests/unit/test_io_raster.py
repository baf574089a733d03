"""Pictures: orientation, depth, colour, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk

from medgen import io
from medgen.errors import InputError

ROWS, COLUMNS = 6, 9


def picture(dtype: Any = np.uint8, channels: int = 0, top: int = 255) -> np.ndarray:
    shape = (ROWS, COLUMNS, channels) if channels else (ROWS, COLUMNS)
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def save(path: Path, array: np.ndarray) -> Path:
    """With SimpleITK, which Pillow did not write, in every depth."""
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(path))
    return path


@pytest.mark.parametrize(
    ("name", "dtype", "channels"),
    [
        ("a.png", np.uint8, 0), ("a.png", np.uint16, 0), ("a.png", np.uint8, 3),
        ("a.png", np.uint16, 3), ("a.png", np.uint8, 4), ("a.png", np.uint16, 4),
        ("a.tif", np.uint8, 0), ("a.tif", np.uint16, 0), ("a.tif", np.float32, 0),
        ("a.tif", np.uint8, 3), ("a.tif", np.uint16, 3),
    ],
)  # fmt: skip
def test_depths_and_colours_are_exact(tmp_path: Path, name: str, dtype: Any, channels: int) -> None:
    array = picture(dtype, channels, top=255 if dtype == np.uint8 else 65535)
    volume = io.read(save(tmp_path / name, array))
    expected = array[..., None] if not channels else array[..., :3]
    assert volume.voxels.dtype == dtype
    assert volume.voxels.shape == (min(channels, 3) or 1, COLUMNS, ROWS)
    # voxels[c, x, y] is the pixel in column x and row y.
    assert np.array_equal(volume.voxels, expected.transpose(2, 1, 0))
    assert volume.geometry.axis_codes == "LP"
    assert volume.geometry.spacing_mm == (1, 1)
    assert volume.provenance.details["raster"]["spacing_known"] is False
    (facts,) = io.describe(tmp_path / name)
    assert facts["shape"] == (COLUMNS, ROWS)
    assert facts["channels"] == len(volume.voxels)
    assert facts["dtype"] == str(np.dtype(dtype))
    assert facts["spacing_mm"] is None
    assert facts["problems"] == []


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(32) * 3, np.arange(48) * 2).astype(np.uint8)
    PIL.Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    volume = io.read(tmp_path / "a.jpg")
    assert volume.provenance.format == "jpeg"
    assert np.abs(volume.voxels[0].T.astype(int) - smooth).max() <= 4


def test_a_camera_turned_sideways(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    array = picture()
    PIL.Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    volume = io.read(tmp_path / "a.png")
    assert np.array_equal(volume.voxels[0].T, np.rot90(array, -1))
    assert io.describe(tmp_path / "a.png")[0]["shape"] == volume.geometry.shape


def test_palettes_become_their_colours(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(picture(channels=3)).quantize(16)
    image.save(tmp_path / "colour.png")
    assert np.array_equal(
        io.read(tmp_path / "colour.png").voxels, np.asarray(image.convert("RGB")).T
    )
    grey = PIL.Image.fromarray(picture()).quantize(16)
    grey.save(tmp_path / "grey.png")
    assert io.read(tmp_path / "grey.png").voxels.shape == (1, COLUMNS, ROWS)


def test_black_and_white(tmp_path: Path) -> None:
    array = picture() > 127
    PIL.Image.fromarray(array).save(tmp_path / "a.png")
    volume = io.read(tmp_path / "a.png")
    assert volume.voxels.dtype == np.uint8
    assert np.array_equal(volume.voxels[0].T, array)


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = [picture(), 255 - picture()]
    images = [PIL.Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
    with pytest.raises(InputError, match="--frame must choose one") as caught:
        io.read(tmp_path / "a.tif")
    assert "--frame 0 to --frame 1" in str(caught.value.hint)
    for number, page in enumerate(pages):
        assert np.array_equal(io.read(tmp_path / "a.tif", frame=number).voxels[0].T, page)
    with pytest.raises(InputError, match="no frame 2"):
        io.read(tmp_path / "a.tif", frame=2)
    assert io.describe(tmp_path / "a.tif")[0]["frames"] == 2


def test_a_result_looks_like_the_picture(tmp_path: Path) -> None:
    volume = io.read(save(tmp_path / "a.png", picture()))
    io.write_nifti(tmp_path / "a.nii", volume.voxels[0], volume.geometry, like=volume)
    again = io.read(tmp_path / "a.nii")
    assert np.array_equal(again.voxels, volume.voxels)
    assert again.geometry.same_grid_as(volume.geometry)


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_small_file_with_a_huge_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(bomb(*size))
    with pytest.raises(InputError, match=r"too large|damaged"):
        io.read(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, name: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="damaged"):
        io.read(tmp_path / name)


def test_truncated_deep_colour(tmp_path: Path) -> None:
    data = save(tmp_path / "a.png", picture(np.uint16, 3, 65535)).read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="damaged"):
        io.read(tmp_path / "a.png")


def test_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(picture(channels=4), "CMYK").save(tmp_path / "cmyk.jpg")
    with pytest.raises(InputError, match="CMYK"):
        io.read(tmp_path / "cmyk.jpg")
    PIL.Image.fromarray(np.full((8, 8), 3, np.uint8)).save(tmp_path / "constant.png")
    with pytest.raises(InputError, match="constant: every voxel is 3"):
        io.read(tmp_path / "constant.png")
    PIL.Image.fromarray(picture()).save(tmp_path / "a.gif")
    with pytest.raises(InputError, match="not an image that can be read"):
        io.read(tmp_path / "a.gif")
