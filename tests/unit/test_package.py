"""Model packages: saved and loaded bit by bit, and refused when anything is not as it was."""

from __future__ import annotations

import json
import lzma
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save
from tiny_packages import calibration, phantom, save_intensity, save_restore

from medgen.errors import InputError, PackageError
from medgen.manifest import MANIFEST_NAME, Manifest
from medgen.package import (
    WEIGHTS,
    ModelPackage,
    list_packages,
    load_package,
    run_model,
    save_package,
    verify_package,
)
from medgen.package.weights import rounded
from medgen.run_record import hash_file
from medgen.volume import Volume


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one package of each kind; tests that damage one copy it first."""
    folder = tmp_path_factory.mktemp("shelf")
    save_intensity(folder / "intensity")
    save_restore(folder / "tiny-restore")
    return folder


@pytest.fixture
def copy(shelf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shelf / "tiny-restore", tmp_path / "tiny-restore"))


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values))


def renew_hash(folder: Path, name: str) -> None:
    """What somebody who edits a file and its hash would do."""
    hashes = json.loads((folder / MANIFEST_NAME).read_text())["sha256"]
    edit_manifest(folder, sha256={**hashes, name: hash_file(folder / name)})


def test_a_package_gives_back_what_was_saved(shelf: Path) -> None:
    package = load_package(shelf / "tiny-restore")
    assert package.manifest.method == "restore"
    assert package.preparation.spacing_mm == 6.0
    assert package.inference.mode == "3d"
    assert package.scoring.evidence == "probability"
    assert package.calibration is None
    first, second = package.method().state_dict(), package.method().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not package.method().training


def test_calibration_round_trip_is_exact(shelf: Path) -> None:
    assert load_package(shelf / "intensity").calibration == calibration()


def test_half_precision_is_used_as_float32(tmp_path: Path, shelf: Path) -> None:
    half = save_restore(tmp_path / "half", half_precision=True)
    full = load_package(shelf / "tiny-restore")
    weights = half.method().state_dict()
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {
        torch.float32
    }
    for key, value in full.method().state_dict().items():
        expected = rounded(value).float() if value.is_floating_point() else value
        assert torch.equal(weights[key], expected), key
    size = (half.folder / WEIGHTS).stat().st_size
    assert size < 0.7 * (full.folder / WEIGHTS).stat().st_size
    verify_package(half)


def test_verify_accepts_what_save_wrote(shelf: Path) -> None:
    for name in ("intensity", "tiny-restore"):
        assert verify_package(load_package(shelf / name)) < 1e-3


def test_verify_notices_weights_that_were_edited_together_with_their_hash(copy: Path) -> None:
    weights = load(lzma.decompress((copy / WEIGHTS).read_bytes()))
    key = max(weights, key=lambda name: weights[name].size)
    weights[key] = weights[key] + 1
    (copy / WEIGHTS).write_bytes(lzma.compress(save(weights)))
    renew_hash(copy, WEIGHTS)
    package = load_package(copy)  # the hash is right again
    with pytest.raises(PackageError, match="golden"):
        verify_package(package)


def test_verify_notices_another_preparation(tmp_path: Path) -> None:
    package = save_intensity(tmp_path / "intensity")
    preparation = {**package.manifest.preparation, "normalisation": "percentile"}
    edit_manifest(package.folder, preparation=preparation)
    with pytest.raises(PackageError, match="golden"):
        verify_package(load_package(package.folder))


def test_verify_notices_a_threshold_for_other_findings(tmp_path: Path) -> None:
    package = save_intensity(
        tmp_path / "other", scoring={"evidence": "score", "minimum_volume_mm3": 99.0}
    )
    with pytest.raises(PackageError, match="smallest finding"):
        verify_package(package)


def test_every_changed_byte_is_noticed(copy: Path) -> None:
    for name in load_package(copy).manifest.sha256:
        original = (copy / name).read_bytes()
        middle = len(original) // 2
        changed = original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :]
        (copy / name).write_bytes(changed)
        with pytest.raises(PackageError, match="changed or damaged") as caught:
            load_package(copy)
        assert name in caught.value.message
        (copy / name).write_bytes(original)
    load_package(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(PackageError, match=r"weights\.safetensors\.xz is missing"):
        load_package(copy)


def test_newer_format_says_upgrade(copy: Path) -> None:
    edit_manifest(copy, format=2, something_new=True)
    with pytest.raises(PackageError, match="format 2") as caught:
        load_package(copy)
    assert "Upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize("change", [
    {"surprise": 1}, {"task": "eat-lunch"}, {"version": "one"}, {"name": "../up"},
    {"contract": {"spatial_dims": [3], "colour": "red"}}, {"format": 0}, {"format": "1"},
], ids=str)  # fmt: skip
def test_unknown_keys_and_values_are_refused(copy: Path, change: dict[str, Any]) -> None:
    edit_manifest(copy, **change)
    with pytest.raises(PackageError):
        load_package(copy)


@pytest.mark.parametrize("part", ["preparation", "inference", "scoring", "config"])
def test_unknown_settings_are_refused_where_they_are_used(copy: Path, part: str) -> None:
    edit_manifest(copy, **{part: {"surprise": 1}})
    package = load_package(copy)
    with pytest.raises(PackageError, match=f"{part}.surprise"):
        package.method() if part == "config" else getattr(package, part)


def test_only_methods_of_the_registry_are_built(copy: Path) -> None:
    edit_manifest(copy, method="os.system")
    with pytest.raises(PackageError, match=r"os\.system"):
        load_package(copy).method()


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    edit_manifest(copy, config={"spatial_dims": 3, "features": [8, 4, 4, 4, 4]})
    with pytest.raises(PackageError, match="do not fit"):
        load_package(copy).method()


def test_only_registered_methods_are_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="registry"):
        save_package(
            tmp_path / "x", torch.nn.Linear(1, 1), card="", golden=phantom().image, name="x",
            version="1.0.0", contract={"spatial_dims": [3]}, intended_use="",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_saving_refuses_to_replace_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = save_intensity(tmp_path / "intensity")
    with pytest.raises(InputError, match="exists"):
        save_intensity(tmp_path / "intensity")
    monkeypatch.setattr("medgen.package.saving.golden_output", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_intensity(tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["intensity"]
    verify_package_files = load_package(package.folder)
    assert verify_package_files.sha256 == package.sha256


TRAVERSALS = [
    "../weights",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    ".hidden",
    "C:\\x",
    "a\\..\\b",
    "",
    "a/",
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_file_names_cannot_leave_the_folder(copy: Path, name: str) -> None:
    edit_manifest(copy, sha256={name: "0" * 64})
    with pytest.raises(PackageError, match="leave the package folder"):
        load_package(copy)


@given(st.text(max_size=20))
def test_any_accepted_file_name_stays_inside(name: str) -> None:
    values = {
        "name": "x", "version": "1.0.0", "method": "intensity", "intended_use": "",
        "contract": {"spatial_dims": [3]}, "sha256": {name: "0" * 64},
    }  # fmt: skip
    try:
        Manifest.model_validate(values)
    except ValueError:
        return
    root = Path("/packages/x")
    assert Path(os.path.normpath(root / name)).is_relative_to(root)
    assert Path(os.path.normpath(root / name)) != root


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_links_out_of_the_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (copy / WEIGHTS).rename(outside)
    (copy / WEIGHTS).symlink_to(outside)
    with pytest.raises(PackageError, match="leads out"):
        load_package(copy)


def test_names_are_found_in_the_listed_folders(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDGEN_MODELS", f"{tmp_path / 'absent'}{os.pathsep}{shelf}")
    assert load_package("tiny-restore").folder == shelf / "tiny-restore"
    assert {"tiny-restore", "intensity"} <= {name for name, _, _ in list_packages()}
    monkeypatch.setenv("MEDGEN_MODELS", str(shelf / "tiny-restore"))
    assert load_package("tiny-restore").folder == shelf / "tiny-restore"


def test_unknown_name_suggests_the_nearest(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_MODELS", str(shelf))
    with pytest.raises(PackageError, match="Did you mean 'tiny-restore'"):
        load_package("tiny-restor")
    with pytest.raises(PackageError, match="no model package at"):
        load_package("folder/that/is/not/there")


def test_one_broken_package_does_not_hide_the_others(
    copy: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / MANIFEST_NAME).write_text("{")
    monkeypatch.setenv("MEDGEN_MODELS", f"{copy}{os.pathsep}{shelf / 'intensity'}")
    found = {name: entry for name, _, entry in list_packages()}
    assert isinstance(found["tiny-restore"], PackageError)
    assert isinstance(found["intensity"], Manifest)


def test_the_model_is_identified_by_every_file(copy: Path, shelf: Path) -> None:
    before = load_package(copy).sha256
    assert before == load_package(shelf / "tiny-restore").sha256
    (copy / "CARD.md").write_text("# Another card\n")
    renew_hash(copy, "CARD.md")
    assert load_package(copy).sha256 != before


def test_maps_lie_on_the_scan_and_repeat(shelf: Path) -> None:
    package: ModelPackage = load_package(shelf / "tiny-restore")
    scan = phantom(seed=3).image
    one, two = run_model(package, scan), run_model(package, scan, method=package.method())
    assert one.map.shape == scan.geometry.shape
    assert one.map.dtype == np.float32
    assert np.array_equal(one.map, two.map)
    assert one.score == two.score
    assert not one.map[~one.brain_mask].any()
    assert one.restored is not None
    assert one.restored.shape == scan.geometry.shape


@pytest.mark.parametrize("content", [b"not compressed", lzma.compress(b"no safetensors")])
def test_weights_that_do_not_unpack_are_refused(copy: Path, content: bytes) -> None:
    (copy / WEIGHTS).write_bytes(content)
    renew_hash(copy, WEIGHTS)
    with pytest.raises(PackageError, match="do not fit"):
        load_package(copy).method()


def test_weights_that_unpack_without_end_are_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.package.files.LARGEST_WEIGHTS", 2**24)
    (copy / WEIGHTS).write_bytes(lzma.compress(bytes(2**25), preset=0))
    renew_hash(copy, WEIGHTS)
    with pytest.raises(PackageError, match="do not fit"):
        load_package(copy).method()


def test_only_slices_that_show_left_and_right_are_mirrored(tmp_path: Path) -> None:
    from medgen.methods import build

    torch.manual_seed(0)
    network = build("restore", {"spatial_dims": 2, "features": (4, 4, 4, 4, 4)})
    plain, mirrored = (
        save_package(
            tmp_path / str(flips) / "flat", network, card="", golden=phantom().image, name="flat",
            version="0.1.0", preparation={"spacing_mm": 6.0}, intended_use="tests",
            inference={"mode": "2d", "flips": flips}, contract={"spatial_dims": [2, 3]},
        )
        for flips in (False, True)
    )  # fmt: skip
    scan = phantom().image
    axial = Volume.from_array(scan.voxels[0, :, :, 10], scan.affine)
    # First axis to the front, second upwards, normal to the right.
    turned = scan.affine[:, [1, 2, 0, 3]]
    sagittal = Volume.from_array(scan.voxels[0, 12], turned)
    assert not np.allclose(run_model(plain, axial).map, run_model(mirrored, axial).map)
    np.testing.assert_array_equal(run_model(plain, sagittal).map, run_model(mirrored, sagittal).map)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        save_intensity(tmp_path / "file" / "package")
