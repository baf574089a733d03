"""A small generator that imitates a larger one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.methods import build
from medgen.training import TrainingConfig, train
from medgen.training.batches import batches, build_source

LATENT = 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir()
        for number in range(8):
            pixels = rng.normal(level, 20, (16, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{number}.png")
    return folder


def settings(images: Path, **changes: Any) -> TrainingConfig:
    data = {"kind": "images", "folder": str(images)} | changes.pop("data", {})
    config = {"channels": 1, "image_size": (16, 16), "conditions": 2, "latent": LATENT, "width": 4}
    config |= changes.pop("config", {})
    values = {"name": "tiny", "method": "cgan", "steps": 2, "batch_size": 8, "ema_decay": 0.0}
    return TrainingConfig.model_validate({**values, **changes, "data": data, "config": config})


@pytest.fixture(scope="module")
def teacher(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with images twice as large as the pupil's."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    config = settings(images, config={"image_size": (32, 32)}, data={"convert": True})
    train(config, folder, progress=False)
    return folder


def taught(images: Path, teacher: Path, **changes: Any) -> Any:
    config = settings(images, data={"kind": "taught", "teacher": str(teacher), **changes})
    return build_source(config, build(config.method, config.config))


def test_a_batch_holds_what_the_teacher_makes_of_its_latent(images: Path, teacher: Path) -> None:
    source = taught(images, teacher)
    batch = source.batch(3)
    assert batch["teacher_latent"].shape == (8, LATENT)
    with torch.inference_mode():
        made = source.teacher.generate(batch["teacher_latent"], batch["condition"])["image"]
    assert made.shape[-1] == 32
    assert torch.allclose(batch["teacher_image"], F.avg_pool2d(made, 2), atol=1e-6)
    assert not torch.equal(batch["teacher_latent"], source.batch(4)["teacher_latent"])


def test_batches_do_not_depend_on_the_process_that_draws_them(images: Path, teacher: Path) -> None:
    source = taught(images, teacher)
    [(drawn, _)] = batches(source, 2, 3, workers=1)
    here = source.batch(2)
    assert drawn.keys() == here.keys()
    for name, value in here.items():
        assert torch.allclose(drawn[name], value, atol=1e-6), name


def test_a_pupil_comes_nearer_to_its_teacher(images: Path, teacher: Path) -> None:
    source = taught(images, teacher)
    quick = {"imitation_weight": 1000.0, "generator_rate": 1e-2}
    config = settings(images, config=quick)
    torch.manual_seed(0)
    pupil: Any = build(config.method, config.config).train()
    optimizers = pupil.optimizers()
    errors = []
    for number in range(60):
        for name, loss, parts in pupil.losses(source.batch(number)):
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            if name == "generator":
                errors.append(float(parts["imitation"]))
    assert np.mean(errors[-10:]) < 0.5 * errors[0]


def test_without_a_teacher_nothing_is_imitated(images: Path) -> None:
    config = settings(images)
    pupil: Any = build(config.method, config.config).train()
    batch = build_source(config, pupil).batch(0)
    assert all("imitation" not in parts for _, _, parts in pupil.losses(batch))


def test_a_folder_without_a_run_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished training run"):
        taught(images, tmp_path)


def test_other_conditions_are_refused(images: Path, teacher: Path) -> None:
    swapped = {"light": "light", "dark": "dark"}
    with pytest.raises(InputError, match="the teacher knows the conditions dark, light"):
        taught(images, teacher, conditions=swapped)


def test_a_run_that_makes_no_images_is_refused(images: Path, teacher: Path, tmp_path: Path) -> None:
    record = json.loads((teacher / "training.json").read_text())
    record["config"] |= {"method": "vae", "config": {"spatial_dims": 2}}
    (tmp_path / "training.json").write_text(json.dumps(record))
    (tmp_path / "weights.safetensors").write_bytes((teacher / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="makes no images"):
        taught(images, tmp_path)
