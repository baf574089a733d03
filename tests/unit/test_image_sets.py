"""Sets of images in folders: what is read, how it is split, and what is refused."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medgen.errors import InputError, LeakageError
from medgen.grouped_files import Item, _held_out_groups
from medgen.image_sets import Images, ImagesConfig, condition_names, split_images


def picture(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """A smooth random picture of ``size`` (columns, rows)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "L": ()}[mode]
    coarse = np.random.default_rng(seed).integers(0, 256, (2, 2, *channels), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two conditions; ten patients with two pictures in each."""
    for number, condition in enumerate(("cancer", "benign")):
        for patient in range(10):
            for shot in range(2):
                seed = 100 * number + 10 * patient + shot
                picture(tmp_path / condition / f"p{number}{patient}_{shot}.png", seed)
    return tmp_path


def config(folder: Path, **changes: Any) -> ImagesConfig:
    values = {"folder": folder, "group_pattern": "^([^_]+)_", "batch_size": 8, **changes}
    return ImagesConfig.model_validate(values)


def test_batches_hold_images_and_their_conditions(folder: Path) -> None:
    source = Images(config(folder))
    assert source.condition_names == ("benign", "cancer")
    assert source.facts["conditions"] == {"benign": 16, "cancer": 16}
    assert (source.facts["groups"], source.facts["held_out_groups"]) == (16, 4)
    batch = source.batch(0)
    assert batch["image"].shape == (8, 3, 8, 8)
    assert batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["condition"].dtype == torch.int64
    # Each image still has its own condition.
    stored = {}
    for item in split_images(config(folder))[0]:
        with Image.open(item.path) as opened:
            stored[np.asarray(opened).transpose(2, 1, 0).tobytes()] = item.condition
    for image, condition in zip(batch["image"], batch["condition"], strict=True):
        pixels = ((image + 1) * 127.5).round().to(torch.uint8).numpy()
        assert stored[pixels.tobytes()] == condition


def test_every_image_is_shown_once_before_any_is_shown_again(folder: Path) -> None:
    source = Images(config(folder))
    shown = torch.cat([source.batch(index)["image"] for index in range(4)]).flatten(1)
    assert len(torch.unique(shown, dim=0)) == 32
    again = source.batch(7)
    assert torch.equal(again["image"], Images(config(folder)).batch(7)["image"])
    assert not torch.equal(again["image"], source.batch(3)["image"])


def test_the_split_is_by_group_and_does_not_depend_on_the_seed(folder: Path) -> None:
    train, held_out = split_images(config(folder))
    assert {item.group for item in train}.isdisjoint(item.group for item in held_out)
    assert {item.condition for item in held_out} == {0, 1}
    assert split_images(config(folder, seed=7)) == (train, held_out)
    one = split_images(config(folder, group_pattern=None))
    assert len({item.group for item in (*one[0], *one[1])}) == 40


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=80),
    st.floats(0.01, 0.6),
)
def test_held_out_groups_reach_the_fraction_of_every_condition_and_little_more(
    pairs: list[tuple[int, int]], fraction: float
) -> None:
    items = [Item(Path("x"), condition, f"g{group}") for group, condition in pairs]

    def lacking(held: frozenset[str]) -> list[int]:
        count = Counter(item.condition for item in items)
        found = Counter(item.condition for item in items if item.group in held)
        return [c for c in count if found[c] < fraction * count[c]]

    held = _held_out_groups(items, {}, fraction)
    assert lacking(held) == []
    assert _held_out_groups(items[::-1], {}, fraction) == held
    last = max(held, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert lacking(held - {last}) != []


def test_groups_and_split_come_from_the_csv(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "cancer").iterdir())
    lines = [f"{name},{name[:3]},{'held_out' if number < 6 else 'train'}" for number, name in
             enumerate(names)]  # fmt: skip
    (folder / "cancer" / "groups.csv").write_text("file,group,split\n" + "\n".join(lines))
    train, held_out = split_images(config(folder, conditions={"c": "cancer"}))
    assert [item.path.name for item in held_out] == names[:6]
    assert len(train) == 14
    leak = [*lines[:5], lines[5].replace("held_out", "train"), *lines[6:]]
    (folder / "cancer" / "groups.csv").write_text("file,group,split\n" + "\n".join(leak))
    with pytest.raises(LeakageError, match="group 'p02' is on both sides"):
        split_images(config(folder))


def test_the_same_image_on_both_sides_is_a_leak(folder: Path) -> None:
    train, held_out = split_images(config(folder))
    held_out[0].path.write_bytes(train[0].path.read_bytes())
    with pytest.raises(LeakageError, match="the same image") as caught:
        Images(config(folder))
    assert str(train[0].path) in caught.value.message
    Images(config(folder, validation_fraction=0))


def test_columns_run_right_and_rows_down(tmp_path: Path) -> None:
    pixels = np.zeros((6, 8), dtype=np.uint8)
    pixels[0, 7] = 255  # upper right
    for number in range(3):
        pixels[5, 0] = number
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    source = Images(config(tmp_path, group_pattern=None))
    assert source.y_down
    assert source.batch(0)["image"].shape == (8, 1, 8, 6)
    assert (source.batch(0)["image"][:, 0, 7, 0] == 1).all()
    assert "condition" not in source.batch(0)


@pytest.mark.parametrize(("symmetries", "ways"), [("none", 1), ("mirror", 2), ("dihedral", 8)])
def test_symmetries_turn_training_images_only(tmp_path: Path, symmetries: str, ways: int) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", number)
    source = Images(config(tmp_path, group_pattern=None, symmetries=symmetries, batch_size=64))
    shown = torch.unique(source.batch(0)["image"].flatten(1), dim=0)
    assert len(shown) == ways
    held_out = source.validation_batch(0)["image"].flatten(1)
    assert len(torch.unique(held_out, dim=0)) == 1
    if symmetries == "mirror":
        image = source.training[0][0].float()
        turned = torch.stack([image, image.flip(1)]).flatten(1) / 127.5 - 1
        torch.testing.assert_close(shown, torch.unique(turned, dim=0))


def test_images_of_one_size_are_resampled_to_another(folder: Path) -> None:
    source = Images(config(folder, size=4))
    assert source.batch(0)["image"].shape == (8, 3, 4, 4)
    full = Images(config(folder)).batch(0)["image"]
    assert (full.mean((2, 3)) - source.batch(0)["image"].mean((2, 3))).abs().max() < 0.1


def test_mixed_sizes_and_modes_are_refused_unless_they_may_be_converted(folder: Path) -> None:
    odd = picture(folder / "cancer" / "p00_0.png", 1, size=(10, 8))
    with pytest.raises(InputError, match=r"differ: .* is 8 x 8 RGB, .* is 10 x 8 RGB") as caught:
        Images(config(folder, size=8))
    assert str(odd) in caught.value.message
    assert "data.convert" in str(caught.value.hint)
    assert Images(config(folder, size=8, convert=True)).batch(0)["image"].shape == (8, 3, 8, 8)
    picture(odd, 1, mode="L")
    with pytest.raises(InputError, match=r"is 8 x 8 grey"):
        Images(config(folder))
    grey = Images(config(folder, convert=True, channels=1))
    assert grey.batch(0)["image"].shape == (8, 1, 8, 8)


def damage(folder: Path) -> None:
    path = sorted((folder / "cancer").iterdir())[3]
    path.write_bytes(path.read_bytes()[:60])


def deepen(folder: Path) -> None:
    path = sorted((folder / "cancer").iterdir())[3]
    Image.fromarray(np.full((8, 8), 300, dtype=np.uint16)).save(path)


def empty(folder: Path) -> None:
    for path in (folder / "cancer").iterdir():
        path.unlink()


def only_one_group(folder: Path) -> None:
    for path in (folder / "cancer").iterdir():
        if not path.name.startswith("p00"):
            path.unlink()


def loose(folder: Path) -> None:
    picture(folder / "loose.png", 1)


def unlisted(folder: Path) -> None:
    (folder / "cancer" / "groups.csv").write_text("file,group\np00_0.png,1\n")


def wrong_columns(folder: Path) -> None:
    (folder / "cancer" / "groups.csv").write_text("name;patient\np00_0.png;1\n")


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (damage, {}, r"p01_1\.png is damaged"),
        (deepen, {}, r"p01_1\.png has uint16 pixels; training takes pictures of 8 bits"),
        (empty, {"conditions": {"a": "cancer", "b": "benign"}}, r"no images in .*cancer"),
        (only_one_group, {}, "condition 'cancer' has too few groups to split: 1"),
        (loose, {}, r"holds images and subfolders with images \(benign, cancer\)"),
        (unlisted, {}, r"does not list p00_1\.png"),
        (wrong_columns, {}, "needs columns `file` and `group`"),
        (None, {"conditions": {"a": "cancr"}}, "no subfolders"),
        (None, {"conditions": {}}, "no images in"),
        (None, {"folder": None}, "data.folder is not set"),
        (None, {"folder": Path("nowhere")}, "no folder at nowhere"),
        (None, {"group_pattern": "(["}, "must be a regular expression"),
        (None, {"group_pattern": "^p"}, "must be a regular expression with one"),
        (None, {"group_pattern": "^(x)"}, r"finds no group in p1"),
        (None, {"exclude": ("p00",)}, "data.exclude names p00"),
        (None, {"size": (4, 4, 4)}, r"data.size must be 2 positive numbers"),
        (None, {"size": (4, 8)}, "which would be distorted to 4 x 8"),
        (None, {"channels": 1}, "has 3 channels, but 1 are wanted"),
    ],
)
def test_bad_sets_are_refused(
    folder: Path, spoil: Any, changes: dict[str, Any], message: str
) -> None:
    if spoil:
        spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        Images(config(**{"folder": folder, **changes}))
    assert not isinstance(caught.value, LeakageError)


def test_noise_is_named_and_can_be_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "benign" / "p10_0.png")
    with caplog.at_level(logging.WARNING):
        Images(config(folder))
    assert "1 of 40 images look like pure noise: p10_0.png" in caplog.text
    caplog.clear()
    source = Images(config(folder, exclude=("p10_0",)))
    assert source.facts["images"] + source.facts["held_out_images"] == 39
    assert caplog.text == ""


def test_names_of_conditions_are_the_users(folder: Path) -> None:
    names = {"malignant": "cancer", "healthy": "benign"}
    assert condition_names(config(folder, conditions=names)) == ("malignant", "healthy")
    assert split_images(config(folder, conditions=names))[0][0].condition == 0


def test_volumes_are_turned_right_front_up(tmp_path: Path) -> None:
    import nibabel

    for number in range(3):
        voxels = np.zeros((6, 5, 4), dtype=np.float32)
        voxels[4:, 0, 3] = 100 + number  # stored left, back, up
        voxels[:, 2:4, :2] = 50
        affine = np.diag([-2.0, -2.0, 2.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / f"{number}.nii.gz")
    source = Images(config(tmp_path, group_pattern=None, spatial_dims=3))
    image = source.batch(0)["image"]
    assert image.shape == (8, 1, 6, 5, 4)
    assert not source.y_down
    assert (image[:, 0, :2, 4, 3] == 1).all(), "stored first is right, last is left"
