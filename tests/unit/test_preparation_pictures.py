"""Pictures do not know how large a pixel is, and their colours mean something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_windowing

from medgen import io
from medgen.errors import InputError
from medgen.preparation import Preparation
from medgen.volume import Geometry, Volume

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def picture(*size: int, high: float = 255, channels: int = 3) -> Volume:
    rng = np.random.default_rng(0)
    voxels = np.round(rng.uniform(0, high, (channels, *size))).astype(np.float32)
    return Volume(voxels, Geometry(size, AFFINE))


@pytest.mark.parametrize(("size", "longest"), [((200, 150), 100), ((64, 128), 128), ((90, 60), 45)])
def test_the_longer_side_has_the_asked_length(size: tuple[int, int], longest: int) -> None:
    prepared = Preparation(longest_side=longest, margin_mm=0).apply(picture(*size))
    found = prepared.image.shape[1:]
    assert abs(max(found) - longest) <= 1
    assert abs(found[0] / found[1] - size[0] / size[1]) < 0.05
    again = prepared.to_source(prepared.image)
    assert again.shape == (3, *size)


def test_volumes_follow_their_spacing() -> None:
    volume = Volume(
        np.random.default_rng(0).random((1, 20, 24, 16)), Geometry((20, 24, 16), AFFINE)
    )
    plain = Preparation(spacing_mm=2.0, brain="none").apply(volume)
    sided = Preparation(spacing_mm=2.0, brain="none", longest_side=50).apply(volume)
    assert plain.image.shape == sided.image.shape


def test_eight_bits_become_0_to_1() -> None:
    volume = picture(32, 24)
    preparation = Preparation(spacing_mm=None, margin_mm=0, normalisation="eight_bits")
    prepared = preparation.apply(volume)
    np.testing.assert_allclose(
        np.asarray(prepared.image), volume.voxels[:, ::-1, ::-1] / 255, atol=1e-6
    )
    assert prepared.ranges == ((0.0, 255.0),) * 3
    with pytest.raises(InputError, match=r"8 bits hold 0\.\.255"):
        preparation.apply(picture(32, 24, high=4095))


def radiograph(folder: Path, **tags: Any) -> tuple[pydicom.Dataset, Volume]:
    """A single slice of 12 bits with other tags: as pydicom and as medgen read it."""
    made = Volume.from_array(np.zeros((32, 24, 1), np.uint16), np.eye(4))
    (path,) = io.write_dicom_series(folder, made, seed="radiograph")
    d = pydicom.dcmread(path)
    d.Modality, d.BitsStored, d.HighBit = "CR", 12, 11
    for keyword, value in tags.items():
        setattr(d, keyword, value)
    values = np.random.default_rng(0).integers(100, 4000, (d.Rows, d.Columns))
    d.PixelData = values.astype("<u2").tobytes()
    d.save_as(path)
    return pydicom.dcmread(path), io.read(path)


EIGHT_BITS = Preparation(spacing_mm=None, brain="none", margin_mm=0, normalisation="eight_bits")


@pytest.mark.parametrize("colours", ("MONOCHROME1", "MONOCHROME2"))
@pytest.mark.parametrize("line", ((1, 0), (2.5, -300)))
@pytest.mark.parametrize("function", (None, "LINEAR", "LINEAR_EXACT"))
@pytest.mark.parametrize("window", ((1500, 2000), ([700.5, 9], [1201, 30]), (4000, 9000)))
def test_a_radiograph_is_seen_through_its_window(
    tmp_path: Path, colours: str, line: tuple[float, float], function: str | None, window: Any
) -> None:
    tags: dict[str, Any] = {"WindowCenter": window[0], "WindowWidth": window[1]}
    if function:
        tags["VOILUTFunction"] = function
    d, volume = radiograph(
        tmp_path, PhotometricInterpretation=colours, RescaleSlope=line[0], RescaleIntercept=line[1],
        **tags,
    )  # fmt: skip
    prepared = EIGHT_BITS.apply(volume)
    # By pydicom: from the least to the largest value that 12 bits can stand for.
    shown = apply_windowing(apply_modality_lut(d.pixel_array, d), d).astype(float)
    low, high = line[1], line[1] + line[0] * 4095
    expected = (shown - low) / (high - low)
    if colours == "MONOCHROME1":
        expected = 1 - expected
    found = prepared.to_source(prepared.image)[0]
    np.testing.assert_allclose(found[..., 0] if found.ndim == 3 else found, expected.T, atol=2e-4)
    assert any("as its header asks" in note for note in prepared.notes)


def test_a_window_of_stored_values_is_not_one_of_mapped_ones(tmp_path: Path) -> None:
    mapping = pydicom.Dataset()
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 0, 4095
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.01, 0.0
    _, volume = radiograph(
        tmp_path, WindowCenter=1500, WindowWidth=2000, RescaleSlope=None, RescaleIntercept=None,
        RealWorldValueMappingSequence=[mapping],
    )  # fmt: skip
    assert volume.voxels.max() < 41
    assert volume.provenance.window is None


@pytest.mark.parametrize(
    "tags",
    ({}, {"WindowCenter": 5}, {"WindowCenter": 5, "WindowWidth": 0},
     {"WindowCenter": 5, "WindowWidth": 1}, {"WindowCenter": "", "WindowWidth": ""}),
)  # fmt: skip
def test_without_a_window_all_of_a_radiograph_is_shown(
    tmp_path: Path, tags: dict[str, Any]
) -> None:
    d, volume = radiograph(tmp_path, **tags)
    prepared = EIGHT_BITS.apply(volume)
    found = prepared.to_source(prepared.image)[0]
    values = d.pixel_array.T.astype(float)
    expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(found[..., 0] if found.ndim == 3 else found, expected, atol=1e-5)
    assert any("no window is given" in note for note in prepared.notes)
