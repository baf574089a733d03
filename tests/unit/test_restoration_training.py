"""Training of restoration methods: what runs, what is measured, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from medgen.errors import InputError
from medgen.training import train
from medgen.training.config import TrainingConfig
from medgen.training.monitor import validate
from medgen.training.pictures import save_grid

CONFIGS = Path(__file__).parents[2] / "configs" / "restoration"


def tiny(name: str) -> TrainingConfig:
    """An example configuration, two steps of it."""
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    few = {"steps": 2, "batch_size": 2, "image_every": 2, "validation_batches": 1}
    values["data"]["anatomy"] |= {"heads": 1, "shape": [24, 28, 24]}
    return TrainingConfig.model_validate(values | few)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_configurations_train(path: Path, tmp_path: Path) -> None:
    result = train(tiny(path.stem), tmp_path / "run", progress=False)
    assert result.finished
    assert result.metrics["validation/mae"] > 0
    assert result.metrics["validation/psnr"] < 60
    assert (tmp_path / "run" / "images" / "step-0000002.png").is_file()
    assert json.loads((tmp_path / "run" / "training.json").read_text(encoding="utf-8"))


ROWS = sorted((CONFIGS.parent / "benchmarks").glob("brain-*.yaml"))


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_the_rows_of_a_table_learn_from_the_same_data(path: Path) -> None:
    defaults = ("brain-inpaint", "brain-super-resolution", "brain-denoise")
    (name,) = (name for name in defaults if path.stem.startswith(name))
    row, default = (
        yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in (path, CONFIGS.parent / f"{name}.yaml")
    )
    same = ("data", "seed", "batch_size", "ema_decay")
    if "start_from" not in row:  # else it goes on from a row that had its time
        same += ("steps", "minutes", "schedule")
    assert {key: row[key] for key in same} == {key: default[key] for key in same}


class Constant(nn.Module):
    """Predicts a number above the truth."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        return {"output": image[:, :1] + self.above}


def test_validation_measures_inside_the_mask() -> None:
    target = torch.rand(2, 1, 8, 8)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5] = 1
    image = target + (1 - mask) * 5
    found = validate(Constant(0.1), [{"image": image, "target": target, "mask": mask}])
    assert found["validation/mae"] == pytest.approx(0.1, rel=1e-4)
    assert found["validation/psnr"] == pytest.approx(20.0, rel=1e-4)
    assert validate(Constant(0.1), [{"image": image, "target": target}]) == {}


def test_the_picture_shows_the_image_and_not_the_hole(tmp_path: Path) -> None:
    from PIL import Image

    image = torch.zeros(1, 6, 96, 96)
    image[:, 1::2] = 1.0  # holes; the images are black
    image[:, 2, 0, 0] = 1e-3
    save_grid(tmp_path / "a.png", {"image": image, "target": image[:, 2:3]}, {}, 3)
    shown = Image.open(tmp_path / "a.png").convert("L")
    assert shown.width == 2 * 96
    assert shown.crop((0, 20, 96, 100)).getextrema() == (0, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "restore", "config": {"spatial_dims": 2}}, "is for methods of inpainting"),
        ({"data": {"kind": "phantoms"}}, "no damaged images and targets"),
        ({"config": {"spatial_dims": 2, "channels": 2}}, "2 channel.* but the method takes 3"),
        (
            {"data": {"kind": "restoration", "task": "denoise", "anatomy": {"kind": "phantoms"}}},
            "1 channel",
        ),
        ({"data": {"kind": "restoration", "task": "inpaint"}}, "nothing to draw from"),
    ],
)
def test_data_that_do_not_fit_the_method_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = tiny("inpaint").model_copy(update=changes)
    with pytest.raises(InputError, match=words):
        train(config, tmp_path / "run", progress=False)
