"""The image generator repeats exactly, tells the truth about its lesions, and never leaks."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medgen.anatomy import LabelMapSource, PhantomSource, normalise
from medgen.anatomy_settings import AnatomyConfig, PhantomConfig
from medgen.corruption import gaussian_blur
from medgen.errors import InputError, LeakageError
from medgen.label_maps import brain_distance_mm, read_label_maps
from medgen.phantoms import brain

SMALL = {"heads": 1, "spacing_mm": 3.0, "size": (48, 64), "batch_size": 4, "input_slices": 3}


@pytest.fixture(scope="module")
def source() -> PhantomSource:
    return PhantomSource(PhantomConfig(**SMALL))


def test_a_batch_is_a_pure_function_of_its_number(source: PhantomSource) -> None:
    later, first = source.batch(7), source.batch(0)
    again = PhantomSource(source.config).batch(7)
    for name in later:
        assert torch.equal(later[name], again[name])
    assert not torch.equal(first["image"], later["image"])


def test_batches_have_the_promised_shapes_and_ranges(source: PhantomSource) -> None:
    for number in range(6):
        batch = source.batch(number)
        assert batch["image"].shape == (4, 3, 48, 64)
        for name in ("healthy", "anomaly", "mask"):
            assert batch[name].shape == (4, 1, 48, 64)
        for name in ("image", "healthy"):
            assert torch.isfinite(batch[name]).all()
            assert 0 <= float(batch[name].min()) <= float(batch[name].max()) <= 1.5
        assert set(batch["anomaly"].unique().tolist()) <= {0.0, 1.0}
        outside = batch["mask"] == 0
        assert (batch["anomaly"][outside] == 0).all()
        assert (batch["healthy"][outside] == 0).all()


def test_volumes_are_drawn_in_3d() -> None:
    config = PhantomConfig(heads=1, spacing_mm=3.0, spatial_dims=3, size=(32, 40, 24), batch_size=2)
    batch = PhantomSource(config).batch(0)
    assert {tuple(image.shape) for image in batch.values()} == {(2, 1, 32, 40, 24)}


def test_image_and_healthy_differ_where_the_anomaly_is_and_much_less_elsewhere() -> None:
    config = PhantomConfig(**SMALL, healthy_fraction=0.0, faintest_lesion=0.4, seed=3)
    source = PhantomSource(config)
    inside, outside = [], []
    for number in range(12):
        batch = source.batch(number)
        change = (batch["image"][:, 1:2] - batch["healthy"]).abs()
        lesion = batch["anomaly"] > 0
        inside.append(change[lesion])
        outside.append(change[(batch["mask"] > 0) & ~lesion])
    assert len(torch.cat(inside)) > 200
    assert torch.cat(inside).mean() > 3 * torch.cat(outside).mean()


def test_without_lesions_nothing_is_marked() -> None:
    source = PhantomSource(PhantomConfig(**SMALL, healthy_fraction=1.0))
    assert all(float(source.batch(number)["anomaly"].sum()) == 0 for number in range(4))


def test_validation_comes_from_other_subjects() -> None:
    """Training subjects with one label only cannot produce validation images, and vice versa."""
    source = PhantomSource(PhantomConfig(**SMALL))
    source.validation_subjects[0].labels.zero_()
    assert float(source.batch(0)["image"].std()) > 0.05
    source.subjects[0].labels.zero_()
    validation = source.validation_batch(0)["anomaly"]
    assert float(validation.sum()) == 0


def write_head(path: Path, seed: int, axes: str = "RAS") -> None:
    labels = brain((40, 48, 40), spacing_mm=3.0, seed=seed, skull=True).labels
    image = nibabel.Nifti1Image(labels.astype(np.int16), np.diag([3.0, 3, 3, 1]))
    turn = nibabel.orientations.axcodes2ornt(axes)
    nibabel.save(image.as_reoriented(turn), path)


def test_a_subject_in_both_lists_is_leakage(tmp_path: Path) -> None:
    write_head(tmp_path / "a.nii.gz", 0)
    config = AnatomyConfig(folder=tmp_path, subjects=("a",), validation_subjects=("a",))
    with pytest.raises(LeakageError, match="'a'"):
        LabelMapSource(config)


def test_held_out_subjects_are_not_trained_on_by_default(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write_head(tmp_path / f"{name}.nii.gz", number)
    config = AnatomyConfig(folder=tmp_path, validation_subjects=("c",), spacing_mm=3.0)
    source = LabelMapSource(config)
    assert (len(source.subjects), len(source.validation_subjects)) == (2, 1)


def test_orientation_of_the_file_does_not_matter(tmp_path: Path) -> None:
    write_head(tmp_path / "a.nii.gz", 0)
    write_head(tmp_path / "b.nii.gz", 0, axes="LPI")
    first, second = read_label_maps(tmp_path, ("a", "b"), 3.0)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("names", [(), ("nobody",)])
def test_missing_label_maps_are_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="label maps"):
        read_label_maps(tmp_path, names, 1.5)
    with pytest.raises(InputError, match="no folder"):
        read_label_maps(tmp_path / "absent", names, 1.5)


def test_brain_distance_is_negative_inside_and_in_millimetres() -> None:
    labels = np.zeros((40, 40, 40), dtype=np.int16)
    labels[10:30, 10:30, 10:30] = 2
    distance = brain_distance_mm(labels, 1.5)
    assert distance[20, 20, 20] < -10
    assert distance[20, 20, 34] == pytest.approx(5 * 1.5)
    assert distance[20, 20, 29] == pytest.approx(-1.5)


def test_blur_keeps_the_mean_and_constants() -> None:
    image = torch.rand(12, 14, 16, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(image, (1.0, 0.0, 2.0))
    assert float(blurred.std()) < float(image.std())
    assert float(blurred.mean()) == pytest.approx(float(image.mean()), abs=0.02)
    assert torch.allclose(gaussian_blur(torch.ones(6, 6, 6), (1, 1, 1)), torch.ones(6, 6, 6))


def test_training_and_use_normalise_alike() -> None:
    """The generator's normalisation is the preparation's, on the same voxels."""
    from medgen.preparation import Preparation

    phantom = brain((40, 48, 40), spacing_mm=3.0, seed=2)
    prepared = Preparation(spacing_mm=None, margin_mm=0, brain="none").apply(phantom.image)
    raw = torch.from_numpy(np.ascontiguousarray(phantom.image.voxels[0]))
    where = torch.from_numpy(phantom.image.voxels[0] > 0)
    ours = normalise(raw, where)
    mask = prepared.mask[0]
    theirs = torch.as_tensor(prepared.image[0])[mask]
    assert abs(float(ours[where].mean()) - float(theirs.mean())) < 0.01
    assert abs(float(ours[where].std()) - float(theirs.std())) < 0.01
