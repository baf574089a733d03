"""SUV by body weight: against the definition, worked out by hand, and refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import PositronEmissionTomographyImageStorage

from medgen import io
from medgen.errors import InputError
from medgen.io.suv import suvbw_factor, to_suvbw
from medgen.volume import Volume

HALF_LIFE = 6586.2  # s, fluorine-18
DOSE, WEIGHT = 3.5e8, 72.5
SCAN = datetime(2021, 3, 4, 10, 15, 30)


def definition(elapsed_s: float) -> float:
    """g/ml per Bq/ml: activity concentration over dose per body mass, the dose decayed."""
    left = DOSE * math.exp(-math.log(2) / HALF_LIFE * elapsed_s)
    return 1.0 / (left / (WEIGHT * 1000))


def pet(**changes: Any) -> Dataset:
    d, tracer = Dataset(), Dataset()
    d.Modality, d.Units, d.DecayCorrection = "PT", "BQML", "START"
    d.CorrectedImage = ["ATTN", "DECY", "SCAT"]
    d.SeriesDate = d.AcquisitionDate = f"{SCAN:%Y%m%d}"
    d.SeriesTime = d.AcquisitionTime = f"{SCAN:%H%M%S}"
    d.PatientWeight = str(WEIGHT)
    d.FrameReferenceTime, d.ActualFrameDuration = "60000", "120000"
    tracer.RadiopharmaceuticalStartTime = f"{SCAN - timedelta(seconds=3661):%H%M%S}"
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = str(DOSE), str(HALF_LIFE)
    d.RadiopharmaceuticalInformationSequence = [tracer]
    for keyword, value in changes.items():
        target = tracer if keyword.startswith("Radio") else d
        if value is None:
            delattr(target, keyword)
        else:
            setattr(target, keyword, value)
    return d


def private(d: Dataset, creator: str, group: int, element: int, vr: str, value: Any) -> Dataset:
    d.private_block(group, creator, create=True).add_new(element & 0xFF, vr, value)
    return d


@pytest.mark.parametrize(
    ("changes", "elapsed"),
    [
        ({}, 3661),
        # Injected before midnight, with a time only: the day before the scan.
        ({"SeriesTime": "001000", "AcquisitionTime": "001000",
          "RadiopharmaceuticalStartTime": "231000"}, 3600),
        # A date with the time settles it.
        ({"RadiopharmaceuticalStartDateTime": "20210304090000.00"}, 4530),
        ({"RadiopharmaceuticalStartDateTime": "20210304080000+0000",
          "TimezoneOffsetFromUTC": "+0100"}, 4530),
        # Corrected to the injection: no decay to undo, whatever the times are.
        ({"DecayCorrection": "ADMIN", "RadiopharmaceuticalStartTime": None}, 0),
        # Acquisition starts after the series does: the series' time counts.
        ({"AcquisitionTime": "102000"}, 3661),
    ],
)  # fmt: skip
def test_factor_is_the_definition(changes: dict[str, Any], elapsed: float) -> None:
    assert suvbw_factor([pet(**changes)]).factor == pytest.approx(definition(elapsed), rel=1e-9)


def test_a_series_made_after_the_scan_is_not_believed() -> None:
    """Then the start of the scan follows from the first frame: its mean activity stands at the
    frame reference time, which is shortly before its middle."""
    late = {"SeriesTime": "150000"}
    found = suvbw_factor([pet(**late)]).factor
    decay = math.log(2) / HALF_LIFE
    times = np.linspace(0, 120, 100_001)
    mean_rate = np.exp(-decay * times).mean()
    at = -math.log(mean_rate) / decay
    assert found == pytest.approx(definition(3661 + at - 60), rel=1e-6)
    # GE states the time of the scan itself.
    ge = private(pet(**late), "GEMS_PETD_01", 0x0009, 0x0D, "DT", f"{SCAN:%Y%m%d%H%M%S}.00")
    assert suvbw_factor([ge]).factor == pytest.approx(definition(3661), rel=1e-9)
    with pytest.raises(InputError, match="FrameReferenceTime"):
        suvbw_factor([pet(**late, FrameReferenceTime=None)])


def test_the_earliest_bed_position_counts() -> None:
    later = pet(AcquisitionTime="103000", FrameReferenceTime="960000")
    assert suvbw_factor([later, pet()]).factor == pytest.approx(definition(3661), rel=1e-9)
    assert suvbw_factor([later]).factor == pytest.approx(definition(3661), rel=1e-9)


def test_vendors_scales_and_ready_values() -> None:
    assert suvbw_factor([pet(Units="GML")]).factor == 1.0
    assert suvbw_factor([pet(Units="GML", SUVType="BW")]).factor == 1.0
    philips = "Philips PET Private Group"
    suv = private(pet(Units="CNTS"), philips, 0x7053, 0x00, "DS", "0.000379")
    assert suvbw_factor([suv]).factor == pytest.approx(0.000379)
    activity = private(pet(Units="CNTS"), philips, 0x7053, 0x09, "DS", "1.7")
    assert suvbw_factor([activity]).factor == pytest.approx(1.7 * definition(3661), rel=1e-9)
    foreign = private(pet(Units="CNTS"), "SOMEBODY ELSE", 0x7053, 0x00, "DS", "0.000379")
    with pytest.raises(InputError, match="Units is CNTS"):
        suvbw_factor([foreign])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"PatientWeight": None}, "PatientWeight is missing"),
        ({"PatientWeight": "0"}, "PatientWeight is 0"),
        ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose is missing"),
        ({"RadionuclideTotalDose": "350"}, "RadionuclideTotalDose is 350, which cannot be in Bq"),
        ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife is missing"),
        ({"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime is missing"),
        ({"RadiopharmaceuticalStartTime": "banana"}, "RadiopharmaceuticalStartTime is damaged"),
        ({"RadiopharmaceuticalStartDateTime": "20210101000000"}, "cannot be for a half-life"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection is NONE"),
        ({"DecayCorrection": None}, "DecayCorrection is missing"),
        ({"CorrectedImage": ["DECY"]}, "does not list ATTN"),
        ({"CorrectedImage": ["ATTN"]}, "does not list DECY"),
        ({"SeriesTime": None}, "SeriesTime or SeriesDate is missing"),
        ({"AcquisitionDate": None}, "AcquisitionTime or AcquisitionDate is missing"),
        ({"Units": "PROPCNTS"}, "Units is PROPCNTS"),
        ({"Units": None}, "Units is missing"),
        ({"Units": "GML", "SUVType": "LBM"}, "SUVType is LBM"),
        ({"Modality": "CT"}, "SUV is for PET"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        suvbw_factor([pet(**changes)])


def test_several_injections_are_refused() -> None:
    d = pet()
    d.RadiopharmaceuticalInformationSequence = [*d.RadiopharmaceuticalInformationSequence] * 2
    with pytest.raises(InputError, match="several injections"):
        suvbw_factor([d])


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(1, 30_000, (6, 5, 4)).astype(np.uint16)
    volume = Volume.from_array(values, np.diag([-2.0, -2, 3, 1]))
    paths = io.write_dicom_series(tmp_path / "s", volume, seed="pet")
    for number, path in enumerate(paths):
        d = pydicom.dcmread(path)
        d.update(pet())
        d.SOPClassUID = PositronEmissionTomographyImageStorage
        d.RescaleSlope, d.RescaleIntercept = str(0.5 + number), "0"
        d.save_as(path)
    return tmp_path / "s"


def test_reading_gives_stored_units_unless_asked(scan: Path) -> None:
    stored, suv = io.read(scan), io.read(scan, units="SUVbw")
    assert (stored.provenance.units, suv.provenance.units) == ("BQML", "SUVbw")
    assert np.allclose(suv.voxels, stored.voxels * definition(3661), rtol=1e-6)
    assert suv.geometry.same_grid_as(stored.geometry)
    again = to_suvbw(stored)
    assert np.array_equal(again.voxels, suv.voxels)
    assert to_suvbw(again) is again
    assert "3661 s after the injection" in again.provenance.details["dicom"]["suv"].basis


def test_one_object_without_weight_does_not_matter_but_the_first_does(scan: Path) -> None:
    change: Callable[[Dataset], None] = lambda d: delattr(d, "PatientWeight")  # noqa: E731
    for path in sorted(scan.iterdir()):
        d = pydicom.dcmread(path)
        change(d)
        d.save_as(path)
    with pytest.raises(InputError, match="PatientWeight is missing") as caught:
        io.read(scan, units="SUVbw")
    assert str(scan) in caught.value.message


def test_refused_elsewhere(tmp_path: Path, scan: Path) -> None:
    volume = io.read(scan)
    file = io.write_nifti(tmp_path / "a.nii.gz", volume.voxels[0], volume.geometry)
    with pytest.raises(InputError, match="SUV needs DICOM"):
        io.read(file, units="SUVbw")
    with pytest.raises(InputError, match="SUV needs PET"):
        to_suvbw(Volume.from_array(volume.voxels[0], volume.affine))
    with pytest.raises(InputError, match="not 'SUV'"):
        io.read(scan, units="SUV")  # type: ignore[arg-type]
    for path in scan.iterdir():
        path.unlink()
    with pytest.raises(InputError, match="not where they were"):
        to_suvbw(volume)
