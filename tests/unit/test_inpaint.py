"""medgen.inpaint and medgen.translate: bad input, what is measured, what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from restoration_networks import Identity, Unsure, forwards
from tiny_packages import phantom, save_intensity, save_restorer

import medgen
from medgen.classical import biharmonic
from medgen.errors import InputError, PackageError
from medgen.metrics.seam import seam
from medgen.package import ModelPackage
from medgen.tasks.contrasts import contrast_in
from medgen.tasks.holes import grown
from medgen.volume import Geometry, Provenance, Volume

SCAN = phantom().image
SHAPE = SCAN.geometry.shape


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return save_restorer(tmp_path_factory.mktemp("models") / "filler", "inpaint")


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return save_restorer(tmp_path_factory.mktemp("models") / "translator", "translate")


def hole(size: int = 4) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[10 : 10 + size, 12 : 12 + size, 9 : 9 + size] = True
    return mask


def ct(**changes: Any) -> Volume:
    values = np.full(SHAPE, 40, np.int16)
    values[:3] = -1000
    values += np.random.default_rng(0).integers(-20, 20, SHAPE).astype(np.int16)
    values[12, 14, 10] = 3000
    return Volume(values[None], SCAN.geometry, Provenance(**{"modality": "CT", **changes}))


def test_classical_methods_refuse_what_is_not_a_number() -> None:
    """Spread by a solver, one NaN would become many."""
    voxels = SCAN.voxels.astype(np.float32)
    voxels[0, 3, 3, 3] = np.nan
    broken = Volume(voxels, SCAN.geometry)
    with pytest.raises(InputError, match="NaN"):
        medgen.inpaint(broken, "biharmonic", mask=hole())
    with pytest.raises(InputError, match="NaN"):
        medgen.translate(broken, "identity")


def test_a_device_that_is_not_there_is_refused_even_if_not_needed() -> None:
    with pytest.raises(InputError, match="cuda:99"):
        medgen.inpaint(SCAN, "nearest", mask=hole(), device="cuda:99")


def test_a_map_of_probabilities_as_mask_is_noticed() -> None:
    fractions = medgen.inpaint(SCAN, "nearest", mask=hole() * np.float32(0.3))
    assert any("fractions" in note for note in fractions.notes)
    whole = medgen.inpaint(SCAN, "nearest", mask=hole() * np.float32(255))
    assert not any("fractions" in note for note in whole.notes)


# --- what to fill ----------------------------------------------------------------------------


def test_something_to_fill_must_be_named() -> None:
    with pytest.raises(InputError, match="nothing to fill"):
        medgen.inpaint(SCAN, "biharmonic")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros(SHAPE), "empty"),
        (np.ones(SHAPE), "covers the whole scan"),
        (np.ones((3, 3, 3)), "shape"),
        (np.full(SHAPE, np.nan), "NaN"),
    ],
)
def test_unusable_masks_are_refused(mask: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        medgen.inpaint(SCAN, "nearest", mask=mask)


def test_a_mask_of_another_grid_is_resampled_only_when_asked(tmp_path: Path) -> None:
    half = SCAN.affine.copy()
    half[:3, :3] /= 2
    half[:3, 3] -= SCAN.affine[:3, :3] @ np.full(3, 0.25)
    fine = np.repeat(np.repeat(np.repeat(hole(), 2, 0), 2, 1), 2, 2).astype(np.uint8)
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(fine, half), path)
    with pytest.raises(InputError) as refused:
        medgen.inpaint(SCAN, "nearest", mask=path)
    for grid in ("24 x 28 x 20 voxels of 6 x 6 x 6 mm", "48 x 56 x 40 voxels of 3 x 3 x 3 mm"):
        assert grid in refused.value.message
    result = medgen.inpaint(SCAN, "nearest", mask=path, resample_mask=True)
    assert np.array_equal(result.invented, hole())


def test_a_mask_beside_the_scan_is_empty() -> None:
    far = SCAN.affine.copy()
    far[:3, 3] += 5000
    mask = Volume(hole()[None].astype(np.uint8), Geometry(SHAPE, far))
    with pytest.raises(InputError, match="field of view"):
        medgen.inpaint(SCAN, "nearest", mask=mask, resample_mask=True)


def test_a_colour_mask_and_a_flat_one_are_refused() -> None:
    colour = Volume(np.ones((3, *SHAPE)), SCAN.geometry)
    with pytest.raises(InputError, match="one channel"):
        medgen.inpaint(SCAN, "nearest", mask=colour)
    flat = Volume(np.ones((1, 24, 28)), Geometry((24, 28), np.eye(4)))
    with pytest.raises(InputError, match="2-D"):
        medgen.inpaint(SCAN, "nearest", mask=flat)


def test_growth_is_in_millimetres() -> None:
    point = np.zeros((15, 15, 15), bool)
    point[7, 7, 7] = True
    geometry = Geometry(point.shape, np.diag([1.0, 2.0, 4.0, 1.0]))
    ball = grown(point, geometry, 4.0)
    assert ball[3, 7, 7]
    assert ball[7, 5, 7]
    assert ball[7, 7, 6]
    assert not ball[2, 7, 7]
    assert ball.sum() == sum(
        x * x + 4 * y * y + 16 * z * z <= 16
        for x in range(-4, 5) for y in range(-2, 3) for z in range(-1, 2)
    )  # fmt: skip
    with pytest.raises(InputError, match="0 to 100 mm"):
        medgen.inpaint(SCAN, "nearest", mask=hole(), grow_mm=-1)


def test_metal_is_filled_with_its_surroundings() -> None:
    scan = ct()
    result = medgen.inpaint(scan, "nearest", remove_metal=2000)
    assert result.invented is not None
    assert result.invented[12, 14, 10]
    assert result.invented[13, 14, 10]  # 6 mm away
    assert not result.invented[14, 14, 10]  # 12 mm
    assert result.output.dtype == np.int16
    assert result.output[12, 14, 10] < 100
    assert any("streaks farther away stay" in note for note in result.notes)


@pytest.mark.parametrize(
    ("scan", "threshold", "said"),
    [(ct(), 3500, "no voxel is above"), (ct(), 100, "denser"), (ct(modality="MR"), 2000, "CT")],
)
def test_metal_that_cannot_be(scan: Volume, threshold: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        medgen.inpaint(scan, "nearest", remove_metal=threshold)


def test_anomalies_are_found_and_filled(tmp_path: Path) -> None:
    detector = save_intensity(tmp_path / "bright")
    found = medgen.detect_anomalies(SCAN, detector).mask
    assert found.any()
    result = medgen.inpaint(SCAN, "nearest", remove_anomalies=True, detector=detector)
    assert result.invented is not None
    assert result.invented[found].all()
    assert result.output[found].mean() < SCAN.voxels[0][found].mean()
    assert any("anomalies" in note for note in result.notes)


def test_without_anomalies_nothing_changes(tmp_path: Path, monkeypatch: Any) -> None:
    from medgen.tasks import detect

    detector = save_intensity(tmp_path / "bright")
    real = detect.detect_anomalies
    monkeypatch.setattr(
        detect, "detect_anomalies", lambda *a, **k: real(*a, **{**k, "threshold": 2.0})
    )
    result = medgen.inpaint(SCAN, "nearest", remove_anomalies=True, detector=detector)
    assert np.array_equal(result.output, SCAN.voxels[0])
    assert result.measures["filled_voxels"] == 0
    assert "nothing was filled" in result.notes


# --- how it is filled ------------------------------------------------------------------------


def test_values_in_the_hole_do_not_count(model: ModelPackage) -> None:
    """A lesion, or metal, that is cut out leaves no trace in the result."""
    bright = SCAN.voxels.copy()
    bright[0][hole()] = 1e6
    clean = medgen.inpaint(SCAN, model, mask=hole())
    dirty = medgen.inpaint(SCAN.with_voxels(bright), model, mask=hole())
    assert np.array_equal(clean.output, dirty.output)
    assert np.array_equal(clean.uncertainty, dirty.uncertainty)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_that_corrects_nothing_gives_the_classical_filling(
    dims: int, tmp_path: Path
) -> None:
    """To the bit, whatever the model's grid; and so does one with no weight in its last layer."""
    package = save_restorer(
        tmp_path / "coarse", "inpaint", dims=dims,
        preparation={"spacing_mm": 8.0, "brain": "none", "brightest": None},
    )  # fmt: skip
    network: Any = package.method()
    for parameter in network.network.final_conv.parameters():
        parameter.data.zero_()
    scans = [(SCAN, hole())]
    if dims == 2:
        flat = Geometry(SHAPE[:2], np.diag([6.0, 5.0, 1, 1]))
        scans.append((Volume(SCAN.voxels[..., 10], flat), hole()[..., 10]))
    for scan, mask in scans:
        expected = medgen.inpaint(scan, "biharmonic", mask=mask)
        for method in (Identity(dims, channels=2), network):
            found = medgen.inpaint(scan, package, mask=mask, method=method)
            assert np.array_equal(found.output, expected.output)
            assert found.uncertainty is not None


def test_the_network_sees_the_filled_scan_in_the_units_of_its_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it adds comes back in the scan's."""
    from medgen.tasks import inpaint as task

    own = save_restorer(
        tmp_path / "own", "inpaint", dims=3,
        preparation={"spacing_mm": None, "brain": "none", "brightest": None},
    )  # fmt: skip
    mask = hole()
    mask[:2, :2] = True  # beyond the foreground, too
    seen: list[Any] = []
    predict = task.predict

    def spy(opened: Any, image: Any, *rest: Any, **more: Any) -> Any:
        seen.append(image.clone())
        return predict(opened, image, *rest, **more)

    class Plus(Identity):
        def predict(self, image: Any) -> Any:
            made = super().predict(image)
            return {**made, "output": made["output"] + 0.5}

    monkeypatch.setattr(task, "predict", spy)
    found = medgen.inpaint(SCAN, own, mask=mask, method=Plus(3, channels=2))
    filled = biharmonic(SCAN.voxels[0], mask)
    prepared = own.preparation.apply(SCAN, ignore=mask)
    low, high = prepared.ranges[0]
    image, shown = prepared.to_source(seen[0])
    assert np.array_equal(shown > 0.5, mask)
    np.testing.assert_allclose(image[mask], ((filled - low) / (high - low))[mask], atol=1e-5)
    around = prepared.to_source(prepared.image)[0]
    assert np.array_equal(image[~mask], around[~mask])
    added = found.output[mask] - filled[mask]
    assert np.abs(added - 0.5 * (high - low)).max() <= 0.51  # whole numbers


def test_a_hole_too_large_for_the_memory_is_refused() -> None:
    with pytest.raises(InputError, match="so large a hole"):
        medgen.inpaint(SCAN, "biharmonic", mask=hole(9), max_memory_gb=0.5007)


def test_only_tiles_with_the_hole_are_computed(model: ModelPackage) -> None:
    network = Identity(2, channels=2)
    shown = forwards(network)
    medgen.inpaint(SCAN, model, mask=hole(), method=network)
    assert 0 < shown.count <= 8  # of 20 slices


def test_a_hole_smaller_than_a_voxel_of_the_model_is_filled(tmp_path: Path) -> None:
    coarse = save_restorer(
        tmp_path / "coarse", "inpaint",
        preparation={"spacing_mm": 11.0, "brain": "none", "brightest": None},
    )  # fmt: skip
    point = np.zeros(SHAPE, bool)
    point[11, 13, 9] = True
    result = medgen.inpaint(SCAN, coarse, mask=point)
    assert result.invented is not None
    assert result.invented.sum() == 1


def test_the_calibration_stretches_the_spread(model: ModelPackage, tmp_path: Path) -> None:
    plain = save_restorer(tmp_path / "plain", "inpaint", restoration={"spread": None})
    sure = medgen.inpaint(SCAN, model, mask=hole(), method=Identity(2, channels=2))
    raw = medgen.inpaint(SCAN, plain, mask=hole(), method=Identity(2, channels=2))
    assert (sure.level, raw.level) == (0.9, None)
    assert sure.uncertainty is not None
    assert raw.uncertainty is not None
    np.testing.assert_allclose(sure.uncertainty, 2 * raw.uncertainty, rtol=1e-6)
    assert any("not calibrated" in note for note in raw.notes)


def test_without_a_spread_the_mirrored_images_tell_it(model: ModelPackage) -> None:
    result = medgen.inpaint(SCAN, model, mask=hole(), method=Unsure(2, channels=2))
    assert result.uncertainty is not None
    # Mirrored along the first axis a ramp becomes its opposite: unequal but at its middle.
    assert result.uncertainty[hole()].std() > 0.1 * result.uncertainty[hole()].mean() > 0


def test_seam() -> None:
    values = np.random.default_rng(0).normal(100, 5, (40, 40, 40))
    inside = np.zeros(values.shape, bool)
    inside[15:25, 15:25, 15:25] = True
    assert seam(values, inside) == pytest.approx(1, abs=0.1)
    darker = np.where(inside, values - 100, values)
    assert seam(darker, inside) > 10  # type: ignore[operator]
    assert seam(np.zeros_like(values), inside) is None
    assert seam(values, np.zeros_like(inside)) is None
    smooth = np.indices(values.shape)[0].astype(float)
    assert seam(smooth, inside) == pytest.approx(1, abs=0.05)


# --- which scans and models ------------------------------------------------------------------


def test_another_task_is_refused(model: ModelPackage, translator: ModelPackage) -> None:
    with pytest.raises(PackageError, match="fills holes in scans"):
        medgen.translate(SCAN, model, to="t2")
    with pytest.raises(PackageError, match="needed is one for inpaint"):
        medgen.inpaint(SCAN, translator, mask=hole())


def test_colour_is_refused(model: ModelPackage) -> None:
    colour = Volume(np.repeat(SCAN.voxels, 3, 0), SCAN.geometry)
    with pytest.raises(InputError, match="grey"):
        medgen.inpaint(colour, model, mask=hole())


def test_ct_for_an_mr_model_needs_force(model: ModelPackage) -> None:
    for scan in (ct(), ct(modality=None)):
        with pytest.raises(InputError, match="MR"):
            medgen.inpaint(scan, model, mask=hole())
    forced = medgen.inpaint(ct(modality=None), model, mask=hole(), force=True)
    assert any("forced" in note for note in forced.notes)


def test_a_contrast_that_was_not_trained_needs_force(tmp_path: Path) -> None:
    targets = ("t1", "t2", "flair")
    model = save_restorer(
        tmp_path / "only-t1", "translate", restoration={"sources": ("t1",), "targets": targets}
    )
    path = tmp_path / "sub-1_T2w.nii.gz"
    nibabel.save(nibabel.Nifti1Image(SCAN.voxels[0], SCAN.affine), path)
    with pytest.raises(InputError, match="this scan is t2"):
        medgen.translate(path, model, to="flair")
    assert any("forced" in n for n in medgen.translate(path, model, to="flair", force=True).notes)
    assert any("unknown" in n for n in medgen.translate(SCAN, model, to="flair").notes)


@pytest.mark.parametrize(
    ("text", "contrast"),
    [
        ("sub-01_T1w.nii.gz", "t1"), ("t2_flair_axial", "flair"), ("Ax T2 FSE", "t2"),
        ("SAG MPRAGE", "t1"), ("t1_post_gd", "t1c"), ("T2*", "t2star"), ("ep2d_diff_trace", "dwi"),
        ("ct_012.png", "ct"), ("scan.nii", None), ("t12.nii", None), ("project.nii", None),
    ],
)  # fmt: skip
def test_names_tell_contrasts(text: str, contrast: str | None) -> None:
    assert contrast_in(text) == contrast


# --- translation -----------------------------------------------------------------------------


def test_the_target_is_named_to_the_network(translator: ModelPackage) -> None:
    images = {to: medgen.translate(SCAN, translator, to=to).output for to in ("t1", "T2", "flair")}
    assert not np.allclose(images["t1"], images["T2"])
    assert medgen.translate(SCAN, translator, to="FLAIR").kind == "flair"
    for to, said in (("t3", "Did you mean"), (None, "say which")):
        with pytest.raises(InputError, match=said):
            medgen.translate(SCAN, translator, to=to)


def test_fixed_units(tmp_path: Path) -> None:
    model = save_restorer(
        tmp_path / "to-ct", "translate", config={"channels": 1},
        restoration={"targets": ("ct",), "units": "HU", "value_range": (-1000, 1000)},
    )  # fmt: skip
    result = medgen.translate(SCAN, model, method=Identity())
    dark = SCAN.voxels[0] == 0
    assert (result.output[dark] == -1000).all()
    scaled = model.preparation.apply(SCAN).image[0].numpy()
    assert result.output[~dark].max() == pytest.approx(-1000 + 2000 * scaled.max(), rel=1e-3)


def test_structure_is_checked_where_no_pairs_taught(
    translator: ModelPackage, tmp_path: Path
) -> None:
    unpaired = save_restorer(
        tmp_path / "unpaired", "translate", config={"channels": 1},
        restoration={"paired": False, "spread": None, "targets": ("t2",)},
    )  # fmt: skip
    found = medgen.translate(SCAN, unpaired, method=Identity()).measures
    assert found["edges_kept"] == pytest.approx(1)
    assert found["tissue_dice"] == pytest.approx(1)
    assert not medgen.translate(SCAN, translator, to="t2").measures
