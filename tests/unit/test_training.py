from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from medgen.config import Config
from medgen.errors import InputError, MedgenError
from medgen.methods import REGISTRY
from medgen.training import TrainingConfig, read_config, train
from medgen.training.batches import SOURCES, batches, build_source
from medgen.training.checkpoint import load_checkpoint, save_checkpoint
from medgen.training.monitor import validate
from medgen.training.pictures import save_grid

DATA = {
    "kind": "phantoms", "heads": 1, "shape": (48, 56, 40), "size": (32, 32),
    "spacing_mm": 5.0, "slices_per_slab": 2,
}  # fmt: skip
TINY = {"spatial_dims": 2, "features": (4, 4, 4, 4, 4)}


def config(**changes: Any) -> TrainingConfig:
    values = {
        "name": "test", "method": "restore", "config": TINY, "data": DATA, "steps": 10,
        "batch_size": 2, "log_every": 2, "image_every": 100, "checkpoint_every": 5, "threads": 1,
        **changes,
    }  # fmt: skip
    return TrainingConfig.model_validate(values)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_tensors(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class NoiseConfig(Config):
    spatial_dims: int = 2
    input_slices: int = 1
    seed: int = 0
    batch_size: int = 2
    broken_from: int = Field(10**6, description="first batch that holds a NaN")


class Noise:
    """Batches of plain noise, in no time."""

    Config = NoiseConfig

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config

    def batch(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed + 2 * index)
        image = torch.randn(self.config.batch_size, 1, 8, 8, generator=generator)
        if index >= self.config.broken_from:
            image[0, 0, 0, 0] = torch.nan
        return {
            "image": image,
            "healthy": image + 1,
            "anomaly": (image > 1).float(),
            "mask": torch.ones_like(image),
        }

    def validation_batch(self, index: int) -> dict[str, Tensor]:
        return self.batch(1000 + index)


class Rivals(nn.Module):
    """Two networks with an optimiser each; the second loss must see the first one's step."""

    class Config(Config):
        spatial_dims: int = 2
        dropout: float = 0.5
        learning_rate: float = 0.01

    input_slices = 1

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.spatial_dims = config, config.spatial_dims
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.second = nn.Conv2d(1, 1, 1)
        self.order: list[str] = []

    def optimizers(self) -> dict[str, Optimizer]:
        rate = self.config.learning_rate
        return {
            "first": SGD(self.first.parameters(), lr=rate, momentum=0.9),
            "second": SGD(self.second.parameters(), lr=rate),
        }

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        before = self.first.weight.detach().clone()
        noisy = nn.functional.dropout(batch["image"], self.config.dropout)
        yield "first", (self.first(noisy) - batch["healthy"]).square().mean(), {}
        assert not torch.equal(before, self.first.weight), "the first step comes before the second"
        fixed = self.first(noisy).detach()
        loss = (self.second(fixed) - batch["healthy"]).square().mean()
        yield "second", loss, {"half": loss.detach() / 2}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        return {"restored": self.second(self.first(image))}


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run of two rival networks on noise."""
    monkeypatch.setitem(REGISTRY, "rivals", (__name__, "Rivals"))
    monkeypatch.setitem(SOURCES, "noise", (__name__, "Noise"))
    return {"method": "rivals", "config": {}, "data": {"kind": "noise"}}


def test_resuming_is_exact_whatever_the_number_of_workers(tmp_path: Path) -> None:
    """Ten steps equal one, then nine with two workers: weights, average and optimiser."""
    whole = train(config(), tmp_path / "whole")
    part = train(config(), tmp_path / "parts", max_minutes=0)
    assert (part.step, part.finished) == (1, False)
    rest = train(config(workers=2), tmp_path / "parts", resume=True)
    assert (rest.step, rest.finished) == (whole.step, whole.finished) == (10, True)
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        assert_same_tensors(tmp_path / "whole" / name, tmp_path / "parts" / name)
    stored = load_file(tmp_path / "whole" / "checkpoint.safetensors")
    assert {name.split("/")[0] for name in stored} == {"method", "average", "optimizer"}
    assert rest.metrics["validation/dice"] == whole.metrics["validation/dice"]
    assert [line["step"] for line in log(tmp_path / "parts")] == [1, 2, 4, 6, 8, 10]


def test_resuming_with_two_optimisers_and_random_losses_is_exact(
    tmp_path: Path, rivals: dict[str, Any]
) -> None:
    settings = config(**rivals, warmup_steps=4, grad_clip=0.1)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "parts", max_minutes=0)
    train(settings, tmp_path / "parts", resume=True, max_minutes=0)
    train(settings, tmp_path / "parts", resume=True)
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        assert_same_tensors(tmp_path / "whole" / name, tmp_path / "parts" / name)


def test_it_learns_and_says_so(tmp_path: Path, rivals: dict[str, Any]) -> None:
    result = train(config(**rivals, steps=150, image_every=50), tmp_path / "run")
    lines = log(tmp_path / "run")
    assert lines[-1]["loss/second"] < 0.5 * lines[0]["loss/second"]
    assert lines[-1]["part/second/half"] == pytest.approx(lines[-1]["loss/second"] / 2, rel=1e-6)
    assert lines[-1]["validation/restoration"] < lines[24]["validation/restoration"]
    assert {"gradient/first", "rate/first", "network_images_per_s", "generator_images_per_s",
            "waiting_fraction"} <= set(lines[0])  # fmt: skip
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["finished"] is True
    assert record["metrics"] == result.metrics
    assert record["config"]["steps"] == 150
    assert "torch" in record["versions"]
    pictures = sorted(path.name for path in (tmp_path / "run" / "images").iterdir())
    assert pictures == ["step-0000050.png", "step-0000100.png", "step-0000150.png"]


def test_the_seed_decides(tmp_path: Path, rivals: dict[str, Any]) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(config(**rivals, seed=seed, steps=3), tmp_path / name)
    weights = [load_file(tmp_path / name / "weights.safetensors")["first.weight"] for name in "abc"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_averaging_the_last_weights_are_saved(
    tmp_path: Path, rivals: dict[str, Any]
) -> None:
    train(config(**rivals, ema_decay=0.0), tmp_path / "run")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    stored = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.equal(value, stored[f"method/{name}"]) for name, value in weights.items())


def test_the_average_is_the_exponential_one(tmp_path: Path, rivals: dict[str, Any]) -> None:
    """Recomputed from the weights of runs of one, two and three steps."""
    raw, average = [], []
    for steps in (1, 2, 3):
        settings = config(**rivals, steps=steps, schedule="constant", ema_decay=0.15)
        train(settings, tmp_path / str(steps))
        stored = load_file(tmp_path / str(steps) / "checkpoint.safetensors")
        raw.append(stored["method/first.weight"])
        average.append(stored["average/first.weight"])
    assert torch.equal(average[0], raw[0])
    for step in (1, 2):
        decay = min(0.15, (1 + step) / (10 + step))
        expected = decay * average[step - 1] + (1 - decay) * raw[step]
        torch.testing.assert_close(average[step], expected)


def test_the_schedule_warms_up_and_falls_to_zero(tmp_path: Path, rivals: dict[str, Any]) -> None:
    train(config(**rivals, warmup_steps=4, log_every=1), tmp_path / "cosine")
    rates = np.array([line["rate/first"] for line in log(tmp_path / "cosine")])
    steps = np.arange(10)
    expected = 0.01 * np.minimum((steps + 1) / 4, 1) * (1 + np.cos(np.pi * steps / 10)) / 2
    np.testing.assert_allclose(rates, expected)
    train(config(**rivals, schedule="constant", log_every=1), tmp_path / "constant")
    assert {line["rate/first"] for line in log(tmp_path / "constant")} == {0.01}


def test_a_time_budget_ends_the_run_and_its_schedule(
    tmp_path: Path, rivals: dict[str, Any]
) -> None:
    settings = config(**rivals, steps=10**6, minutes=0.005, log_every=1, checkpoint_every=10**6)
    result = train(settings, tmp_path / "run")
    assert result.finished
    assert 1 < result.step < 10**6
    rates = [line["rate/first"] for line in log(tmp_path / "run")]
    assert rates[0] > 0.009
    assert rates[-1] < 0.5 * rates[0]


def test_a_nan_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, rivals: dict[str, Any]
) -> None:
    broken = {**rivals, "data": {"kind": "noise", "broken_from": 7}}
    with pytest.raises(MedgenError) as caught:
        train(config(**broken), tmp_path / "run")
    assert "step 8: loss/first is not finite" in caught.value.message
    assert "checkpoint of step 5 is kept" in str(caught.value.hint)
    stored = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in stored.values())
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize("rate", [1e5, 1e37])
def test_exploding_weights_never_reach_a_checkpoint(
    tmp_path: Path, rivals: dict[str, Any], rate: float
) -> None:
    hot = {**rivals, "config": {"learning_rate": rate}}
    with pytest.raises(MedgenError, match="is not finite"):
        train(config(**hot, schedule="constant", checkpoint_every=1), tmp_path / "hot")
    path = tmp_path / "hot" / "checkpoint.safetensors"
    stored = load_file(path) if path.exists() else {}
    assert bool(stored) == (rate == 1e5)
    assert all(torch.isfinite(value).all() for value in stored.values())


def test_a_method_without_gradients_trains_too(tmp_path: Path) -> None:
    pca = {"spatial_dims": 2, "components": 3, "grid": 8}
    train(config(method="pca", config=pca, steps=4), tmp_path / "run")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert int(weights["count"]) == 8
    assert log(tmp_path / "run")[-1]["validation/restoration"] > 0


def test_an_occupied_folder_is_refused_and_only_a_run_is_replaced(
    tmp_path: Path, rivals: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    train(config(**rivals), folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        train(config(**rivals), folder)
    train(config(**rivals, steps=2), folder, overwrite=True)
    assert [line["step"] for line in log(folder)] == [2]
    assert [path.name for path in (folder / "images").iterdir()] == ["step-0000002.png"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_resuming_needs_a_checkpoint_of_the_same_run(
    tmp_path: Path, rivals: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        train(config(**rivals), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    train(config(**rivals), tmp_path / "run")
    with pytest.raises(InputError, match="another seed, grad_clip"):
        train(config(**rivals, seed=3, grad_clip=1.0), tmp_path / "run", resume=True)
    longer = train(config(**rivals, steps=12), tmp_path / "run", resume=True)
    assert longer.step == 12
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="damaged"):
        train(config(**rivals), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "intensity", "config": {}}, "nothing to train"),
        ({"config": {**TINY, "feature": 3}}, "Did you mean 'features'"),
        ({"data": {**DATA, "kind": "phantom"}}, "data.kind must be one of label_maps, phantoms"),
        ({"data": {**DATA, "contrast": {}}}, "Did you mean 'contrasts'"),
        ({"data": {**DATA, "spatial_dims": 3}}, "data.spatial_dims is 3, but the method needs 2"),
        ({"precision": "bf16-mixed"}, "needs a CUDA device"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failed_checkpoint_leaves_the_old_one(tmp_path: Path, rivals: dict[str, Any]) -> None:
    train(config(**rivals), tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    before = path.read_bytes()
    method = Rivals(Rivals.Config())
    optimizer = SGD(method.parameters(), lr=0.1)
    optimizer.state[method.first.weight]["history"] = [1, 2]
    with pytest.raises(MedgenError, match="keeps a list"):
        save_checkpoint(path, _position(), method, method, {"only": optimizer})
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="does not fit this method"):
        load_checkpoint(path, nn.Linear(1, 1), nn.Linear(1, 1), {})
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".part")] == []


def _position() -> Any:
    from medgen.training.checkpoint import Position

    return Position(1, 0.0, {})


def test_batches_come_in_order_and_do_not_depend_on_threads() -> None:
    method = Rivals(Rivals.Config())
    source = build_source(config(), method)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here = [batch for batch, _ in batches(source, 3, 6, workers=0)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    there = [batch for batch, _ in batches(source, 3, 6, workers=2)]
    assert len(here) == len(there) == 3
    for first, second in zip(here, there, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_validation_measures_what_is_predicted() -> None:
    class Fixed:
        def predict(self, image: Tensor) -> dict[str, Tensor]:
            return {"restored": image + 0.25, "log_odds": 200 * (image - 0.5).sign()}

    image = torch.rand(2, 1, 8, 8)
    batch = {"image": image, "healthy": image, "anomaly": (image > 0.5).float(),
             "mask": torch.ones_like(image)}  # fmt: skip
    found = validate(Fixed(), [batch, batch])
    assert found["validation/restoration"] == pytest.approx(0.25)
    assert found["validation/dice"] == pytest.approx(1)


def test_the_picture_grid_shows_front_up_and_right_right(tmp_path: Path) -> None:
    image = torch.zeros(2, 3, 40, 60)  # three slices of one channel; (right, front)
    image[:, 1, 30:, :20] = 1  # right and back, in the middle slice only
    truth = torch.zeros(2, 1, 40, 60)
    save_grid(tmp_path / "grid.png", {"image": image, "healthy": truth}, {}, input_slices=3)
    with Image.open(tmp_path / "grid.png") as opened:
        grid = np.asarray(opened)
    height, width = grid.shape[0] // 2, grid.shape[1] // 2
    tile = grid[-height:, :width]
    assert tile[-3, -3].tolist() == [255, 255, 255]  # lower right
    assert tile[-3, 3].tolist() == [0, 0, 0]
    assert tile[height // 2, -3].tolist() == [0, 0, 0]
    assert grid[-3, -3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_grid_takes_volumes_and_colour(tmp_path: Path, channels: int) -> None:
    image = torch.rand(2, channels, 16, 16, 6)
    save_grid(tmp_path / "grid.png", {"image": image, "healthy": image}, {"score": image}, 1)
    with Image.open(tmp_path / "grid.png") as opened:
        grid = np.asarray(opened)
    tile = grid[-96:, :96]
    assert (np.ptp(tile, axis=-1).max() > 0) == (channels == 3)


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


GOOD = "name: a\nmethod: vae\ndata: {kind: phantoms}\nsteps: 5\n"


def test_yaml_with_overrides(tmp_path: Path) -> None:
    path = yaml(tmp_path, GOOD)
    overrides = ["steps=7", "data.size=[8, 8]", "config.latent=dense"]
    settings = read_config(path, overrides)
    assert settings.steps == 7
    assert settings.data == {"kind": "phantoms", "size": [8, 8]}
    assert settings.config == {"latent": "dense"}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (GOOD + "step: 3\n", [], "unknown key 'step'. Did you mean 'steps'"),
        (GOOD + "log_every: soon\n", [], "log_every: .*got 'soon'"),
        (GOOD.replace("vae", "vea"), [], "unknown method 'vea'. Did you mean 'vae'"),
        ("name: a\n", [], "the key 'steps' is missing"),
        ("- a\n- b\n", [], "must hold `key: value` lines, got list"),
        ("name: [a\n", [], "is not valid YAML"),
        ("!!python/object/apply:os.getcwd []\n", [], "is not valid YAML"),
        (GOOD, ["steps"], "expected key=value, got 'steps'"),
        (GOOD, ["name.first=a"], "'name' holds a single value"),
    ],
)
def test_bad_yaml_is_explained(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_config(yaml(tmp_path, text), overrides)


def test_a_missing_configuration_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the configuration"):
        read_config(tmp_path / "absent.yaml")


def test_tensorboard_that_is_not_installed_is_refused(
    tmp_path: Path, rivals: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="tensorboard is switched on, but not installed"):
        train(config(**rivals, tensorboard=True), tmp_path / "run")


def test_tensorboard_gets_the_log(tmp_path: Path, rivals: dict[str, Any]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(**rivals, tensorboard=True), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/first")]
    expected = [(line["step"], line["loss/first"]) for line in log(tmp_path / "run")]
    assert found == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected]


def test_a_bar_is_drawn_on_a_terminal_only(
    tmp_path: Path,
    rivals: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(config(**rivals), tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(config(**rivals), tmp_path / "shown")
    assert "10/10" in capsys.readouterr().err
