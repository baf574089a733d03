"""Sets of normal images: what is shown, what is held back, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.errors import InputError, LeakageError
from medgen.image_sets import ImagesConfig, split_images
from medgen.io import read
from medgen.normal_sets import Normals, NormalsConfig
from medgen.training import TrainingConfig, train

SIZE = (32, 24)  # columns, rows


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE, mode: str = "L") -> None:
    """Smooth, different all over, and with grain, so that no part of it is a background."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    coarse = random.integers(10, 246, (4, 4) if mode == "L" else (4, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR))
    grain = random.integers(0, 10, smooth.shape, dtype=np.uint8)
    Image.fromarray(smooth + grain).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten patients; two pictures of each are well, and of every other one two are ill."""
    for patient in range(10):
        for shot in range(2):
            picture(tmp_path / "well" / f"p{patient}_{shot}.png", 10 * patient + shot)
            if patient % 2:
                picture(tmp_path / "ill" / f"p{patient}_{shot + 2}.png", 500 + 10 * patient + shot)
    return tmp_path


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Balls in the dark, each brighter to the right."""
    import nibabel

    axes = np.meshgrid(*[np.arange(n) - n / 2 for n in (20, 24, 16)], indexing="ij")
    ball = sum(axis**2 for axis in axes) < 49
    for number in range(6):
        voxels = np.where(ball, 100 + 5 * axes[0] + number, 0).astype(np.float32)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / f"s{number}.nii.gz")
    return tmp_path


def config(folder: Path, **changes: Any) -> NormalsConfig:
    values = {
        "folder": folder, "normal": ("well",), "group_pattern": "^([^_]+)_", "batch_size": 8,
        "validation_fraction": 0.3, **changes,
    }  # fmt: skip
    return NormalsConfig.model_validate(values)


def still(**changes: Any) -> dict[str, Any]:
    return {"shift": 0, "zoom": 0, "anomalies": {}, **changes}


def of_volumes(folder: Path, **changes: Any) -> NormalsConfig:
    preparation = {"spacing_mm": None, "margin_mm": 0, "brain": "none"}
    own = {"conditions": {}, "normal": (), "group_pattern": None, "preparation": preparation}
    return config(folder, **{**own, **changes})


def test_batches_hold_images_with_and_without_anomalies(folder: Path) -> None:
    source = Normals(config(folder, batch_size=32, anomalies={"fpi": 1, "cutpaste": 1, "blobs": 1}))
    batch = source.batch(0)
    assert set(batch) == {"image", "healthy", "anomaly", "mask"}
    assert all(value.shape == (32, 1, *SIZE) for value in batch.values())
    assert all(value.dtype == torch.float32 for value in batch.values())
    assert batch["healthy"].min() >= 0 and 0.9 < batch["healthy"].max() <= 1.5
    for name in ("anomaly", "mask"):
        assert set(batch[name].unique().tolist()) <= {0.0, 1.0}
    differ = (batch["image"] != batch["healthy"]).flatten(1).any(1)
    ill = batch["anomaly"].flatten(1).any(1)
    assert 16 < differ.sum() < 32, "about a fifth are left healthy"
    assert not (ill & ~differ).any() and ill.sum() > 10
    assert not (batch["anomaly"] * (1 - batch["mask"])).any()


def test_a_batch_is_a_function_of_its_number(folder: Path) -> None:
    one, two = Normals(config(folder)), Normals(config(folder))
    for draw in (Normals.batch, Normals.validation_batch):
        first, again, other = draw(one, 3), draw(two, 3), draw(one, 4)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["image"], other["image"])
    assert not torch.equal(one.batch(3)["image"], Normals(config(folder, seed=1)).batch(3)["image"])
    held_out = one.validation_batch(3)["image"]
    assert torch.equal(held_out, Normals(config(folder, seed=1)).validation_batch(3)["image"])


def test_the_ill_are_never_shown_but_share_the_split(folder: Path) -> None:
    source = Normals(config(folder, **still()))
    assert source.facts["conditions"] == {"well": source.facts["images"]}
    given = config(folder).model_dump(include=set(ImagesConfig.model_fields) - {"size", "channels"})
    train, held_out = split_images(ImagesConfig.model_validate(given | {"symmetries": "none"}))
    well = {item.group for item in train if item.condition == 1}
    assert source.facts["groups"] == len(well)
    assert len(source.held_out) == sum(item.condition == 1 for item in held_out)
    ill = [read(path).voxels for path in sorted((folder / "ill").iterdir())]
    apply = source.config.preparation.apply
    shown = [scan.image for scan in (*source.training, *source.held_out)]
    assert len(shown) == 20
    for path, voxels in zip(sorted((folder / "ill").iterdir()), ill, strict=True):
        prepared = apply(read(path)).image.half()
        assert prepared.shape[1:] == voxels.shape[1:]
        assert not any(torch.equal(image[..., 0], prepared) for image in shown)


def test_images_are_what_the_preparation_makes_of_them(folder: Path) -> None:
    source = Normals(config(folder, **still(batch_size=20, normal=("well",))))
    batch = source.validation_batch(0)["healthy"]
    known = [
        source.config.preparation.apply(read(path)).image.as_tensor()
        for path in sorted((folder / "well").iterdir())
    ]
    for image in batch:
        nearest = min(float((image - other).abs().max()) for other in known)
        assert nearest < 1e-3, "half precision, and no interpolation"


def test_eight_bits_keep_brightness_and_colour(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.png", number, mode="RGB")
    preparation = {"spacing_mm": None, "margin_mm": 0, "normalisation": "eight_bits"}
    changes = still(normal=(), conditions={}, group_pattern=None, preparation=preparation)
    source = Normals(config(tmp_path, **changes))
    assert source.channels == 3
    with Image.open(tmp_path / "0.png") as opened:
        pixels = torch.from_numpy(np.asarray(opened).copy()).permute(2, 1, 0) / 255
    # As a prepared picture lies: its axes run to the right and to the front.
    wanted = pixels.flip(1, 2)
    shown = [scan.image[..., 0].float() for scan in (*source.training, *source.held_out)]
    assert min(float((image - wanted).abs().max()) for image in shown) < 1e-3


@pytest.mark.parametrize(("symmetries", "ways"), [("none", 1), ("mirror", 2), ("dihedral", 8)])
def test_symmetries_turn_training_images_only(tmp_path: Path, symmetries: str, ways: int) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", number, size=(16, 16))
    own = {"normal": (), "conditions": {}, "group_pattern": None, "symmetries": symmetries}
    source = Normals(config(tmp_path, **still(batch_size=64, **own)))
    shown = source.batch(0)["healthy"].flatten(1)
    alike = torch.cdist(shown, shown, p=torch.inf) < 1e-3
    assert int((alike.tril().sum(1) == 1).sum()) == ways, "images that no earlier one is like"
    assert len(torch.unique(source.validation_batch(0)["healthy"].flatten(1), dim=0)) == 1


def test_training_images_move_and_held_out_ones_do_not(folder: Path) -> None:
    source = Normals(config(folder, anomalies={}, batch_size=14))
    first, later = source.batch(0)["healthy"], source.batch(1)["healthy"]
    assert torch.cdist(first.flatten(1), later.flatten(1)).min() > 1e-2
    assert (source.batch(0)["mask"] == 0).any(), "beyond the image"
    assert (source.validation_batch(0)["mask"] == 1).all()


@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_volumes_are_seen_in_slices_that_show_something(volumes: Path, view: str) -> None:
    source = Normals(of_volumes(volumes, size=16, views=(view,), **still()))
    batch = source.batch(0)
    assert batch["healthy"].shape == (8, 1, 16, 16)
    assert (batch["mask"].flatten(1).sum(1) > 5).all()
    assert (batch["healthy"] * (1 - batch["mask"])).max() < 1e-6
    rising = {"axial": 1, "coronal": 1, "sagittal": 0}[view]
    inside = (batch["mask"][:, 0, 1:] * batch["mask"][:, 0, :-1]) > 0
    steps = batch["healthy"][:, 0].diff(dim=1)[inside]
    assert (steps > -1e-3).all() and float(steps.mean() > 0.05) == rising


def test_volumes_are_seen_in_patches(volumes: Path) -> None:
    changes = {"spatial_dims": 3, "size": (8, 12, 10), "symmetries": "mirror"}
    source = Normals(of_volumes(volumes, **changes, anomalies={"blobs": 1}))
    batch = source.batch(0)
    assert batch["image"].shape == (8, 1, 8, 12, 10)
    both = batch["mask"][:, :, 1:] * batch["mask"][:, :, :-1]
    slopes = (batch["healthy"].diff(dim=2) * both).flatten(1).sum(1)
    assert (slopes > 0).any() and (slopes < 0).any(), "some are mirrored"
    assert batch["anomaly"].sum() > 0


def test_smaller_images_are_reflected_and_do_not_count_there(folder: Path) -> None:
    source = Normals(config(folder, **still(size=(40, 24))))
    batch = source.validation_batch(0)
    assert batch["healthy"].shape == (8, 1, 40, 24)
    assert (batch["mask"][:, :, 4:36] == 1).all()
    assert (batch["mask"][:, :, :4] == 0).all() and (batch["mask"][:, :, 36:] == 0).all()
    mirrored = batch["healthy"][:, :, 4:8].flip(2)
    torch.testing.assert_close(batch["healthy"][:, :, :4], mirrored, atol=1e-4, rtol=0)


def test_the_same_image_on_both_sides_is_a_leak(folder: Path) -> None:
    train, held_out = split_images(
        ImagesConfig(folder=folder, group_pattern="^([^_]+)_", validation_fraction=0.3)
    )
    held_out[0].path.write_bytes(train[0].path.read_bytes())
    with pytest.raises(LeakageError, match="the same image"):
        Normals(config(folder))


def mixed_colour(folder: Path) -> None:
    picture(folder / "well" / "p3_0.png", 1, mode="RGB")


def mixed_size(folder: Path) -> None:
    picture(folder / "well" / "p3_0.png", 1, size=(30, 24))


def constant(folder: Path) -> None:
    Image.fromarray(np.zeros((24, 32), dtype=np.uint8)).save(folder / "well" / "p3_0.png")


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (None, {"normal": ("wel",)}, "data.normal names wel, but the conditions"),
        (None, {"folder": Path("nowhere")}, "no folder at nowhere"),
        (None, {"channels": 3}, r"has 1 channel\(s\), but 3 are wanted"),
        (None, {"symmetries": "dihedral"}, "dihedral needs square images"),
        (None, {"spatial_dims": 3, "size": 8}, "is 2-D, but the method is 3-D"),
        (None, {"conditions": {}, "normal": ()}, "there are no images in"),
        (mixed_colour, {}, r"p3_0\.png has 3 channel\(s\), but 1 are wanted"),
        (mixed_size, {}, r"p3_0\.png is \(30, 24\)|differ in size"),
        (constant, {}, r"p3_0\.png"),
    ],
)
def test_bad_sets_are_refused(
    folder: Path, spoil: Any, changes: dict[str, Any], message: str
) -> None:
    if spoil:
        spoil(folder)
    with pytest.raises(InputError, match=message):
        Normals(config(**{"folder": folder, **changes}))


@pytest.mark.parametrize(
    "changes",
    [{"spatial_dims": 3, "symmetries": "dihedral"}, {"anomalies": {"fpi": 0}}, {"colour": 1}],
)
def test_contradictory_settings_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dihedral|more often|colour"):
        config(folder, **changes)


def test_a_method_trains_on_them(folder: Path, tmp_path: Path) -> None:
    data = config(folder).model_dump(
        mode="json", include={"folder", "normal", "group_pattern", "validation_fraction"}
    )
    settings = TrainingConfig.model_validate({
        "name": "test", "method": "dae", "steps": 2, "batch_size": 2, "threads": 1,
        "config": {"spatial_dims": 2, "features": (8,) * 5}, "log_every": 1,
        "data": {"kind": "normals", "size": [32, 32], **data},
    })  # fmt: skip
    result = train(settings, tmp_path / "run")
    assert result.metrics["validation/restoration"] > 0
    colour = settings.model_copy(update={"config": {**settings.config, "channels": 3}})
    with pytest.raises(InputError, match="but 3 are wanted"):
        train(colour, tmp_path / "other")
