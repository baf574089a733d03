"""The detection task: limits, thresholds, devices, and the folder that is all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_packages import calibration, phantom, save_intensity

from medgen import detect_anomalies
from medgen.devices import check_device_name, resolve_device
from medgen.errors import InputError
from medgen.io import write_nifti
from medgen.manifest import Manifest
from medgen.package import ModelPackage
from medgen.run_record import fingerprint, peak_memory_gb
from medgen.tasks.detect_files import output_stem
from medgen.tasks.limits import (
    check_facts,
    check_memory,
    check_scan,
    container_memory_gb,
    scan_memory_gb,
)
from medgen.tasks.output_folder import output_folder
from medgen.volume import Provenance, Volume


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return save_intensity(tmp_path_factory.mktemp("shelf") / "tiny-baseline")


def test_a_detection_is_consistent(package: ModelPackage) -> None:
    case = phantom()
    found = detect_anomalies(case.image, package.folder)
    shape = case.image.geometry.shape
    assert found.map.shape == found.mask.shape == found.brain_mask.shape == shape
    assert found.restored is None
    assert found.threshold == calibration().threshold
    assert found.threshold_meaning == calibration().threshold_rule
    assert found.p_value == calibration().p_value(found.score)
    assert not found.map[~found.brain_mask].any()
    assert (found.map[found.mask] >= found.threshold).all()
    total = sum(finding.volume_mm3 for finding in found.findings)
    assert total == pytest.approx(found.mask.sum() * case.image.geometry.voxel_volume_mm3)
    assert found.model.name == "tiny-baseline"
    assert found.device == "cpu"
    assert found.estimated_memory_gb > 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_scan_gives_the_flipped_map(package: ModelPackage, axis: int) -> None:
    image = phantom().image
    flipped = np.flip(image.voxels, axis + 1).copy()
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (image.geometry.shape[axis] - 1)
    affine[:3, axis] *= -1
    turned = type(image).from_array(flipped[0], affine)
    one, two = (detect_anomalies(scan, package.folder) for scan in (image, turned))
    np.testing.assert_allclose(np.flip(two.map, axis), one.map, atol=1e-4)
    assert two.score == pytest.approx(one.score, abs=1e-4)


def test_memory_is_refused_before_any_voxel_is_read(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = phantom().image
    path = write_nifti(tmp_path / "scan.nii.gz", image.voxels[0], image.geometry)
    monkeypatch.setattr("medgen.io.read", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"limit is 0\.1 GB"):
        detect_anomalies(path, package.folder, max_memory_gb=0.1)


def test_a_volume_in_memory_is_checked_too(package: ModelPackage) -> None:
    image = phantom().image
    with pytest.raises(InputError, match=r"limit is 0\.1 GB"):
        detect_anomalies(image, package.folder, max_memory_gb=0.1)
    colour = type(image)(np.repeat(image.voxels, 3, axis=0), image.geometry)
    with pytest.raises(InputError, match="colour"):
        detect_anomalies(colour, package.folder)


def test_a_slice_gets_no_error_rate_from_whole_scans(package: ModelPackage) -> None:
    image = phantom().image
    found = detect_anomalies(
        type(image).from_array(image.voxels[0][:, :, 10], image.affine), package.folder
    )
    assert found.p_value is None
    assert "no error rate is known for a single slice" in found.threshold_meaning
    assert found.threshold == calibration().threshold


def wider(factor: float) -> Volume:
    """The phantom with a header that claims larger voxels."""
    image = phantom().image
    return Volume.from_array(image.voxels[0], np.diag([factor, factor, factor, 1]) @ image.affine)


@pytest.mark.parametrize("factor", [10, 1000])
def test_a_voxel_size_in_the_wrong_unit_is_refused(package: ModelPackage, factor: float) -> None:
    scan = wider(factor)
    facts = {"shape": scan.geometry.shape, "channels": 1, "modality": None,
             "spacing_mm": scan.geometry.spacing_mm}  # fmt: skip
    with pytest.raises(InputError, match=f"covers {24 * 6 * factor} x .* mm") as caught:
        check_scan(scan, package.manifest)
    assert "cm instead of mm" in str(caught.value.hint)
    with pytest.raises(InputError, match="mm"):
        check_facts(facts, package.manifest, float("inf"))


def test_the_grid_to_resample_to_counts_for_memory(package: ModelPackage) -> None:
    """A slice with pixels of 6 m is small as it is, and huge at the model's 6 mm."""
    affine = np.diag([6000.0, 6000.0, 1.0, 1.0])
    scan = Volume.from_array(phantom().image.voxels[0][:, :, 10], affine)
    with pytest.raises(InputError, match=r"covers 144000 x 168000 mm; .* 24000 x 28000 voxels"):
        detect_anomalies(scan, package.folder, max_memory_gb=8)


def test_a_ct_is_refused_however_it_was_chosen(package: ModelPackage) -> None:
    image = phantom().image
    scan = Volume(image.voxels, image.geometry, Provenance(modality="CT"))
    with pytest.raises(InputError, match="was made for MR, this is CT"):
        check_scan(scan, package.manifest)


@pytest.mark.parametrize("cached", [0, 3])
def test_cached_files_do_not_count_as_used(tmp_path: Path, cached: int) -> None:
    assert container_memory_gb(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("8000000000\n")
    (tmp_path / "memory.current").write_text("5000000000\n")
    (tmp_path / "memory.stat").write_text(f"file 9\ninactive_file {cached}000000000\n")
    assert container_memory_gb(tmp_path) == pytest.approx(3 + cached)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory_gb(tmp_path) == float("inf")


def test_a_gpu_that_is_too_small_is_replaced_and_noted(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medgen.tasks import detect

    real = detect.run_model

    def small_gpu(*args: Any, device: str, **options: Any) -> Any:
        if device != "cpu":
            raise torch.cuda.OutOfMemoryError
        return real(*args, device=device, **options)

    monkeypatch.setattr(detect, "run_model", small_gpu)
    monkeypatch.setattr(detect, "resolve_device", lambda _: "cuda:0")
    found = detect_anomalies(phantom().image, package.folder, device="auto")
    assert found.device == "cpu"
    assert found.fallbacks == ("cuda:0 ran out of memory; the CPU was used instead",)
    assert found.fallbacks[0] in found.notes
    with pytest.raises(InputError, match="too little free memory"):
        detect_anomalies(phantom().image, package.folder, device="cuda")


@given(st.text(max_size=8))
def test_device_names(name: str) -> None:
    known = name in ("auto", "cpu", "mps", "cuda") or (
        name.startswith("cuda:") and name[5:].isdecimal()
    )
    if known:
        check_device_name(name)
    else:
        with pytest.raises(InputError, match="unknown device"):
            check_device_name(name)


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device("auto") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"


sides = st.integers(1, 2000)


@given(st.lists(sides, min_size=2, max_size=3), st.integers(1, 4), st.floats(0.01, 64))
def test_memory_limit_is_exactly_the_estimate(
    shape: list[int], channels: int, limit: float
) -> None:
    need = scan_memory_gb(shape, channels)
    if need > limit:
        with pytest.raises(InputError, match="GB"):
            check_memory(shape, channels, limit)
    else:
        assert check_memory(shape, channels, limit) == need
    assert scan_memory_gb([side + 1 for side in shape], channels) > need


@given(st.lists(sides, min_size=2, max_size=3), st.integers(1, 4))
def test_accepted_shapes_are_those_of_the_contract(shape: list[int], channels: int) -> None:
    manifest = Manifest.model_validate({
        "name": "x", "version": "1.0.0", "method": "intensity", "intended_use": "",
        "contract": {"spatial_dims": [3], "channels": 1},
    })  # fmt: skip
    facts = {"shape": tuple(shape), "channels": channels, "modality": None, "spacing_mm": None}
    fits = len(shape) == 3 and channels == 1 and sum(side >= 16 for side in shape) >= 2
    try:
        check_facts(facts, manifest, limit_gb=float("inf"))
    except InputError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize(("sources", "stem"), [
    (("a/sub-01_T1w.nii.gz",), "sub-01_T1w"), (("scan.nii",), "scan"), (("a.b.PNG",), "a.b"),
    (("DOE_JOHN",), "scan"), (("DOE.dcm",), "scan"), ((), "scan"), (("a.nii", "b.nii"), "scan"),
    ((".nii.gz",), "scan"),
])  # fmt: skip
def test_output_stem(sources: tuple[str, ...], stem: str) -> None:
    assert output_stem(sources) == stem


def test_output_folder_publishes_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "out"
    with pytest.raises(RuntimeError), output_folder(target, ["x"], overwrite=False) as draft:
        (draft / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with output_folder(target, ["x", "y"], overwrite=False) as draft:
        (draft / "x").write_text("one")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["x"]
    with pytest.raises(InputError), output_folder(target, ["x"], overwrite=False):
        pytest.fail("must not start")
    (target / "y").write_text("stale")
    (target / "z").write_text("not ours")
    with output_folder(target, ["x", "y"], overwrite=True) as draft:
        (draft / "x").write_text("two")
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "x": "two", "z": "not ours",
    }  # fmt: skip


def test_output_folder_keeps_earlier_results_when_interrupted(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path, ["x"], overwrite=True) as draft:
        (draft / "x").write_text("new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}


def test_fingerprint_of_a_folder_depends_on_contents_only(tmp_path: Path) -> None:
    for name, names in (("one", "ab"), ("two", "yx")):
        (tmp_path / name).mkdir()
        for content, file in zip(("first", "second"), names, strict=True):
            (tmp_path / name / file).write_text(content)
    one, two = fingerprint(tmp_path / "one"), fingerprint(tmp_path / "two")
    assert one["sha256"] == two["sha256"]
    assert one["files"] == 2
    (tmp_path / "two" / "x").write_text("changed")
    assert fingerprint(tmp_path / "two")["sha256"] != one["sha256"]


def test_peak_memory_is_plausible() -> None:
    assert 0.05 < peak_memory_gb() < 1000
