"""Sets of images with label maps: what is read, how it moves together, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from medgen.annotated_sets import (
    AnnotatedConfig,
    AnnotatedImages,
    cropped_or_padded,
    find_pairs,
    jittered,
    split_annotated,
)
from medgen.errors import InputError


def blob(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An image whose brightness is 80 times its label, and the label map: two nested boxes."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[tuple(slice(2, size - 1) for size in shape)] = 1
    labels[tuple(slice(3, 4 + seed % 3) for _ in shape)] = 2
    return labels * 80, labels


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """Ten patients with two stacks of three slices each, (Z, X, Y)."""
    for patient in range(10):
        for frame in range(2):
            image, labels = (np.stack([values] * 3) for values in blob(patient, (10, 8)))
            image[0, 0, 0] = patient * 10 + frame  # no two files are the same
            np.savez(tmp_path / f"p{patient}_f{frame}.npz", image=image, label=labels)
    return tmp_path


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    for side in ("images", "labels"):
        (tmp_path / side).mkdir()
    for number in range(8):
        image, labels = blob(number, (8, 9, 7))
        scaled = image.astype(np.float32) * (number + 1)
        for side, values in (("images", scaled), ("labels", labels)):
            affine = np.diag([1.0, 1.0, 2.0, 1.0])
            nibabel.save(
                nibabel.Nifti1Image(values, affine), tmp_path / side / f"c_{number}.nii.gz"
            )
    return tmp_path


def config(folder: Path, **changes: Any) -> AnnotatedConfig:
    return AnnotatedConfig.model_validate({"folder": folder, "batch_size": 6, **changes})


def test_slices_of_patients_with_their_labels(slices: Path) -> None:
    source = AnnotatedImages(config(slices))
    assert source.label_names == ("background", "label 1", "label 2")
    assert (source.label_count, source.condition_names, source.y_down) == (3, (), True)
    assert (source.facts["images"], source.facts["groups"]) == (48, 8)
    groups = [{item.group for item in source.items(side)} for side in ("train", "held_out")]
    assert groups[0].isdisjoint(groups[1])
    assert len(groups[1]) == 2
    for batch in (source.batch(0), source.validation_batch(0)):
        assert batch["image"].shape == batch["labels"].shape == (6, 1, 10, 8)
        assert batch["labels"].dtype == torch.int64
        expected = batch["labels"] * 80 / 127.5 - 1
        marked = torch.zeros(10, 8, dtype=torch.bool)
        marked[0, 0] = True
        assert (batch["image"] - expected)[..., ~marked].abs().max() < 1e-6


def test_volumes_are_scaled_each_by_its_percentiles(volumes: Path) -> None:
    source = AnnotatedImages(config(volumes, spatial_dims=3))
    assert source.facts["groups"] == 6
    assert not source.y_down
    batch = source.batch(0)
    assert batch["image"].shape == (6, 1, 8, 9, 7)
    # Whatever its scale, a volume's brightest part is 1 and its darkest -1.
    expected = batch["labels"] * 80 / 80 - 1
    torch.testing.assert_close(batch["image"].clamp(max=0), expected.clamp(max=0).float(),
                               atol=0.02, rtol=0)  # fmt: skip


def test_volumes_can_be_cut_into_slices_along_the_last_axis(volumes: Path) -> None:
    source = AnnotatedImages(config(volumes))
    assert source.facts["images"] == 6 * 7
    assert source.batch(0)["image"].shape == (6, 1, 8, 9)


def test_sizes_are_cut_and_padded_about_the_middle() -> None:
    values = torch.arange(1, 6)[None, :, None].expand(1, 5, 3)
    assert cropped_or_padded(values, (3, 3))[0, :, 0].tolist() == [2, 3, 4]
    padded = cropped_or_padded(values, (8, 5))
    assert padded.shape == (1, 8, 5)
    assert padded[0, :, 2].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert padded[0, :, 0].sum() == padded[0, :, 4].sum() == 0


@pytest.mark.parametrize("fit", ["crop", "resample"])
def test_image_and_labels_reach_a_size_together(slices: Path, fit: str) -> None:
    batch = AnnotatedImages(config(slices, size=(14, 6), fit=fit)).batch(0)
    assert batch["image"].shape == batch["labels"].shape == (6, 1, 14, 6)
    inside = batch["labels"] > 0
    assert batch["image"][inside].mean() > batch["image"][~inside].mean() + 0.4
    assert set(batch["labels"].unique().tolist()) <= {0, 1, 2}


def test_small_and_large_are_told_by_the_training_cases(volumes: Path) -> None:
    source = AnnotatedImages(config(volumes, spatial_dims=3, condition_by="volume"))
    assert source.condition_names == ("small", "large")
    batch = source.batch(0)
    volume = (batch["labels"] > 0).flatten(1).sum(1).float()
    assert ((volume > volume.median()) <= (batch["condition"] == 1)).all()
    assert set(source.facts["conditions"]) == {"small", "large"}


def test_mirroring_keeps_labels_on_the_image(slices: Path) -> None:
    source = AnnotatedImages(config(slices, mirror=True, batch_size=48))
    batch, still = source.batch(0), AnnotatedImages(config(slices, batch_size=48)).batch(0)
    changed = (batch["labels"] != still["labels"]).flatten(1).any(1)
    assert 10 < changed.sum() < 38
    flipped = still["image"][changed].flip(2), still["labels"][changed].flip(2)
    assert torch.equal(batch["image"][changed], flipped[0])
    assert torch.equal(batch["labels"][changed], flipped[1])


@pytest.mark.parametrize("dims", [2, 3])
def test_jitter_moves_image_and_labels_alike_and_a_little(dims: int) -> None:
    shape = (24, 32, 20)[:dims]
    labels = torch.zeros(16, 1, *shape, dtype=torch.int64)
    labels[(slice(None), 0, *[slice(size // 4, 3 * size // 4) for size in shape])] = 1
    images = labels.float() * 2 - 1
    generator = torch.Generator().manual_seed(0)
    moved, where = jittered(images, labels, 1.0, generator)
    assert moved.min() >= -1
    assert moved.max() <= 1 + 1e-5
    agreement = ((moved > 0) == (where == 1)).float().mean()
    assert agreement > 0.97
    same = (where == labels).flatten(1).float().mean(1)
    assert same.mean() < 0.97
    assert same.min() > 0.8
    volume = where.flatten(1).sum(1) / labels.flatten(1).sum(1)
    assert volume.std() > 0.02
    assert (volume - 1).abs().max() < 0.4
    again = jittered(images, labels, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], moved)
    nothing = jittered(images, labels, 0.0, generator)
    torch.testing.assert_close(nothing[0], images, atol=1e-4, rtol=0)
    assert torch.equal(nothing[1], labels)


def replace(path: Path, **arrays: Any) -> None:
    with np.load(path) as stored:
        values = {**dict(stored), **arrays}
    np.savez(path, **{name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("arrays", "changes", "message"),
    [
        ({"label": np.zeros((3, 10, 7), np.uint8)}, {}, "labels do not match: .*p3_f0"),
        ({"label": np.full((3, 10, 8), 3, np.uint8)}, {"label_names": ("a", "b")},
         r"p3_f0\.npz has the label 3, but data.label_names declares 2: a, b"),
        ({"label": np.full((3, 10, 8), 0.5)}, {}, "must hold whole numbers"),
        ({"label": np.full((3, 10, 8), -1)}, {}, "must hold whole numbers"),
        ({"label": None}, {}, r"holds image, but needs `image` and `label`"),
        ({"image": np.zeros((3, 9, 8), np.uint8), "label": np.zeros((3, 9, 8), np.uint8)}, {},
         r"the images differ: .* is \(10, 8\), .*p3_f0\.npz is \(9, 8\)"),
        ({}, {"spatial_dims": 3, "size": (4, 4)}, "must be 3 positive numbers"),
    ],
)  # fmt: skip
def test_bad_stacks_are_refused(
    slices: Path, arrays: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    replace(slices / "p3_f0.npz", **arrays)
    with pytest.raises(InputError, match=message):
        AnnotatedImages(config(slices, **changes))


def test_damaged_stacks_and_empty_labels_are_refused(slices: Path) -> None:
    path = slices / "p3_f0.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"p3_f0\.npz is damaged"):
        AnnotatedImages(config(slices))
    path.write_bytes(whole)
    for file in slices.iterdir():
        replace(file, label=np.zeros((3, 10, 8), np.uint8))
    with pytest.raises(InputError, match=r"all labels .* are 0"):
        AnnotatedImages(config(slices))


def test_missing_partners_are_named(volumes: Path) -> None:
    (volumes / "labels" / "c_3.nii.gz").unlink()
    with pytest.raises(InputError, match=r"c_3\.nii\.gz has no partner in .*labels"):
        find_pairs(volumes)
    (volumes / "images" / "c_3.nii.gz").unlink()
    (volumes / "images" / "c_5.nii.gz").unlink()
    with pytest.raises(InputError, match=r"c_5\.nii\.gz has no partner in .*images"):
        AnnotatedImages(config(volumes, spatial_dims=3))


def test_folders_can_be_conditions(tmp_path: Path, slices: Path) -> None:
    for name in ("sick", "well"):
        (tmp_path / name).mkdir()
    for path in list(slices.glob("*.npz")):
        path.rename(tmp_path / ("sick" if path.name < "p5" else "well") / path.name)
    source = AnnotatedImages(config(tmp_path))
    assert source.condition_names == ("sick", "well")
    assert {item.group[0] for item in split_annotated(config(tmp_path))[0]} == {"p"}
    with pytest.raises(InputError, match="the folders are conditions too"):
        AnnotatedImages(config(tmp_path, condition_by="volume"))


def test_turns_keep_the_proportions_of_images_that_are_not_square() -> None:
    """A disc stays a disc: as long along one axis as along the other."""
    x, y = torch.meshgrid(torch.arange(32), torch.arange(96), indexing="ij")
    disc = ((x - 15.5) ** 2 + (y - 47.5) ** 2 < 100).long().expand(16, 1, -1, -1)
    _, labels = jittered(disc * 2.0 - 1, disc, 2.0, torch.Generator().manual_seed(0))
    edges = [labels.amax(axis).sum(-1).float() for axis in (2, 3)]
    assert ((edges[0] - edges[1]).abs() <= 2).all()
