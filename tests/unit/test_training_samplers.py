"""Training methods that sample: exact to resume, shown as it runs, and fitted to its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from medgen.errors import InputError
from medgen.methods import build
from medgen.training import TrainingConfig, train
from medgen.training.batches import SOURCES, build_source
from medgen.training.pictures import CAPTION_HEIGHT, LABEL_COLOURS, save_samples
from medgen.training.samples import COLUMNS

GAN = {
    "channels": 1, "image_size": (16, 16), "width": 4, "latent": 8, "conditions": 2,
    "conditioning": "projection", "critic_norm": "none", "augmentation": "adaptive",
    "augment_speed": 50, "penalty": "r1", "penalty_every": 3, "instance_noise": 0.1,
    "noise_steps": 20,
}  # fmt: skip
SPADE = {
    "image_size": (16, 16), "labels": 3, "features": (8, 8), "critic_features": (8, 8),
    "critic_scales": 1, "latent": 4, "mask_sampler": "deform", "bank_size": 8,
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Any]:
    """Bright squares left or right in two conditions."""
    for name, first in (("left", 2), ("right", 9)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((16, 16), 20 + number, dtype=np.uint8)
            pixels[2 + number % 4 : 8, first : first + 5] = 220
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    return {"kind": "images", "folder": str(tmp_path / "set"), "symmetries": "mirror"}


@pytest.fixture
def annotated(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "labelled").mkdir()
    for number in range(8):
        labels = np.zeros((2, 16, 16), dtype=np.uint8)
        labels[:, 4:12, 4:12] = 1
        labels[:, 6 : 8 + number % 4, 6:9] = 2
        image = 100 * labels + number
        np.savez(tmp_path / "labelled" / f"p{number}.npz", image=image, label=labels)
    return {"kind": "annotated", "folder": str(tmp_path / "labelled"), "jitter": 0.5}


def config(data: dict[str, Any], **changes: Any) -> TrainingConfig:
    values = {
        "name": "test", "method": "gan", "config": GAN, "data": data, "steps": 10, "batch_size": 4,
        "log_every": 2, "image_every": 5, "checkpoint_every": 5, "threads": 1, **changes,
    }  # fmt: skip
    return TrainingConfig.model_validate(values)


def assert_same(first: Path, second: Path) -> None:
    for name in ("checkpoint.safetensors", "weights.safetensors"):
        a, b = load_file(first / name), load_file(second / name)
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.mark.parametrize("method", ["gan", "spade"])
def test_resuming_is_exact(
    tmp_path: Path, pictures: dict[str, Any], annotated: dict[str, Any], method: str
) -> None:
    """With adaptive augmentation, lazy penalties, fading noise, a bank of label maps."""
    settings = config(pictures)
    if method == "spade":
        settings = config(annotated, method="spade", config=SPADE)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "parts", max_minutes=0)
    train(settings, tmp_path / "parts", resume=True, max_minutes=0)
    rest = train(settings, tmp_path / "parts", resume=True)
    assert (rest.step, rest.finished) == (10, True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_may_begin_with_the_weights_of_another(
    tmp_path: Path, pictures: dict[str, Any]
) -> None:
    from medgen.training.build import build_method

    train(config(pictures), tmp_path / "first")
    path = tmp_path / "first" / "weights.safetensors"
    fresh = build_method(config(pictures, seed=5)).state_dict()
    begun = build_method(config(pictures, seed=5, start_from=path)).state_dict()
    stored = load_file(path)
    assert fresh.keys() == begun.keys() and stored.keys() < begun.keys()
    for name, value in begun.items():
        assert torch.equal(value, stored.get(name, fresh[name])), name
    assert not any(name.startswith("critic.") for name in stored), "critics begin anew"


def test_resuming_needs_no_weights_that_the_run_began_with(
    tmp_path: Path, pictures: dict[str, Any]
) -> None:
    train(config(pictures), tmp_path / "first")
    path = tmp_path / "first" / "weights.safetensors"
    settings = config(pictures, start_from=path, seed=1)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "parts", max_minutes=0)
    path.unlink()
    train(settings, tmp_path / "parts", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(InputError, match="cannot read start_from"):
        train(settings, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_weights_to_begin_with_must_fit(tmp_path: Path, pictures: dict[str, Any]) -> None:
    from medgen.training.build import build_method

    train(config(pictures, steps=1), tmp_path / "first")
    weights = tmp_path / "first" / "weights.safetensors"
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights at all")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    part = load_file(weights)
    lacking = part.popitem()[0]
    save_file(part, tmp_path / "part.safetensors")
    for path, changes, message in (
        (tmp_path / "none.safetensors", {}, "cannot read start_from"),
        (tmp_path / "damaged.safetensors", {}, "cannot read start_from"),
        (cut, {}, "cannot read start_from"),
        (tmp_path, {}, "cannot read start_from"),
        (tmp_path / "part.safetensors", {}, f"other networks; they differ in {lacking}"),
        (weights, {"config": {**GAN, "latent": 9}}, "do not fit this method"),
        (weights, {"method": "vaegan", "config": {"image_size": (16, 16)}}, "other networks"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            build_method(config(pictures, start_from=path, **changes))
        assert "weights.safetensors of a run" in (refused.value.hint or "")


def test_being_watched_changes_nothing(tmp_path: Path, pictures: dict[str, Any]) -> None:
    train(config(pictures, image_every=1), tmp_path / "often")
    train(config(pictures, image_every=100), tmp_path / "once")
    assert_same_weights(tmp_path / "often", tmp_path / "once")


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = (load_file(folder / "weights.safetensors") for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_fetching_values_late_changes_nothing_but_the_moment(
    tmp_path: Path, pictures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the values of ten steps are looked at together."""
    from medgen.training.loop import _Run

    train(config(pictures, log_every=5), tmp_path / "each")
    begin = _Run.__init__

    def late(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        self.fetch_every = 10

    monkeypatch.setattr(_Run, "__init__", late)
    train(config(pictures, log_every=5), tmp_path / "late")
    assert_same(tmp_path / "each", tmp_path / "late")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("each", "late")]
    for line, other in zip(*logs, strict=True):
        values, same = json.loads(line), json.loads(other)
        timed = {name for name in values if name.endswith(("_s", "waiting_fraction"))}
        assert {name: values[name] for name in values.keys() - timed} == {
            name: same[name] for name in same.keys() - timed
        }


def test_the_record_names_conditions_and_counts_images(
    tmp_path: Path, pictures: dict[str, Any]
) -> None:
    result = train(config(pictures), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["condition_names"] == ["left", "right"]
    assert record["label_names"] == []
    source = record["source"]
    assert (source["images"], source["held_out_images"]) == (12, 4)
    assert len(source["hashed_ids"]) == source["groups"]
    assert all(len(name) == 64 for name in source["hashed_ids"])
    assert {"health/diversity", "health/coverage", "part/critic/accuracy"} <= set(result.metrics)
    names = sorted(path.name for path in (tmp_path / "run" / "images").iterdir())
    assert names == ["real.png", "step-0000005.png", "step-0000010.png"]
    stored = load_file(tmp_path / "run" / "weights.safetensors")
    assert stored.keys()
    assert not any(name.startswith("critic.") for name in stored), "only training needs it"


def test_a_row_of_the_grid_is_a_condition(tmp_path: Path, pictures: dict[str, Any]) -> None:
    train(config(pictures), tmp_path / "run")
    with Image.open(tmp_path / "run" / "images" / "step-0000010.png") as grid:
        assert grid.size == (COLUMNS * 96, 2 * (96 + CAPTION_HEIGHT))


@pytest.mark.parametrize(("y_down", "row"), [(True, 0), (False, -1)])
@pytest.mark.parametrize("depth", [(), (3,)])
def test_samples_are_upright_with_their_labels_in_colour(
    tmp_path: Path, y_down: bool, row: int, depth: tuple[int, ...]
) -> None:
    image = -torch.ones(8, 1, 96, 100, *depth)
    image[0, 0, 95, 0] = 1  # at the right; up or down
    labels = torch.zeros(8, 1, 96, 100, *depth, dtype=torch.int64)
    labels[0, 0, 95, 0] = 2
    save_samples(tmp_path / "a.png", {"image": image, "labels": labels}, [""], y_down=y_down)
    with Image.open(tmp_path / "a.png") as opened:
        grid = np.asarray(opened)
    assert grid.shape == (100, 8 * 2 * 96, 3)
    assert grid[row, 95].tolist() == [255, 255, 255]
    assert grid[row, 2 * 96 - 1].tolist() == LABEL_COLOURS[1].tolist()
    assert (grid.sum(-1) > 0).sum() == 2


def test_a_network_that_only_paints_is_shown_on_real_label_maps(
    tmp_path: Path, annotated: dict[str, Any]
) -> None:
    settings = config(annotated, method="spade", config={**SPADE, "mask_sampler": "none"})
    result = train(settings, tmp_path / "run")
    assert (tmp_path / "run" / "images" / "step-0000010.png").exists()
    assert "health/diversity" in result.metrics
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["label_names"] == ["background", "label 1", "label 2"]


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"config": {**GAN, "conditions": 3}}, {}, "conditions is 3, but the data have 2"),
        ({}, {"conditions": {"left": "left"}}, r"conditions is 2, .* have 1 condition\(s\): left"),
        ({"config": {**GAN, "image_size": (16, 32)}}, {}, "would be distorted to 16 x 32"),
        ({"config": {**GAN, "channels": 3}}, {}, "has 1 channels, but 3 are wanted"),
        ({}, {"size": 8}, r"data.size is \(8, 8\), but the method makes \(16, 16\)"),
        ({}, {"channels": 3}, "data.channels is 3, but the method needs 1"),
        ({"method": "spade", "config": SPADE}, {}, "labels is 3, but the data have no labels"),
        ({"method": "vae", "config": {"spatial_dims": 2}}, {}, "has no pairs to restore"),
    ],
)
def test_data_that_do_not_fit_the_method_are_refused(
    tmp_path: Path,
    pictures: dict[str, Any],
    changes: dict[str, Any],
    data: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        train(config({**pictures, **data}, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_drawn_pairs_are_refused_by_a_method_that_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="draws pairs to restore"):
        train(config({"kind": "phantoms", "heads": 1, "size": (32, 32)}), tmp_path / "run")


def test_labels_that_the_method_does_not_know_are_refused(annotated: dict[str, Any]) -> None:
    method = build("spade", {**SPADE, "labels": 5})
    with pytest.raises(InputError, match="labels is 5, but the data have 3"):
        build_source(config(annotated, method="spade", config=SPADE), method)


def test_every_kind_of_data_can_be_imported() -> None:
    from importlib import import_module

    for module, name in SOURCES.values():
        assert hasattr(getattr(import_module(module), name), "Config"), name
