"""The monitors of adversarial training fire on planted failures, and only on those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medgen.errors import MedgenError
from medgen.methods import REGISTRY
from medgen.methods.gan import GAN
from medgen.training import TrainingConfig, TrainingResult, health, train
from medgen.training.health import (
    LONG_ALIKE,
    LONG_OVERPOWERED,
    LONG_VANISHED,
    PATIENCE,
    REMEDIES,
    WINDOW,
    Health,
    precision_and_coverage,
)

MLP = {
    "channels": 2, "image_size": (1, 1), "architecture": "mlp", "width": 64, "latent": 2,
    "critic_norm": "none", "generator_rate": 1e-3, "critic_rate": 1e-3,
}  # fmt: skip


class Deaf(GAN):
    """A generator that does not listen to its latent."""

    def _make(self, image: Tensor, condition: Tensor | None) -> Tensor:
        return super()._make(image, condition).mean(0, keepdim=True).expand_as(image)

    def generate(self, latent: Tensor, *rest: Any, **settings: Any) -> dict[str, Tensor]:
        return super().generate(0 * latent, *rest, **settings)


def run(folder: Path, method: str = "gan", steps: int = 600, **config: Any) -> TrainingResult:
    settings = {
        "name": "test", "method": method, "config": {**MLP, **config}, "steps": steps,
        "data": {"kind": "mixture", "deviation": 0.05}, "batch_size": 64, "schedule": "constant",
        "image_every": 50, "log_every": 50, "checkpoint_every": 10**6, "threads": 1,
        "ema_decay": 0.9,
    }  # fmt: skip
    return train(TrainingConfig.model_validate(settings), folder)


def kinds(result: TrainingResult) -> set[str]:
    return {entry["warning"] for entry in result.warnings}


def test_a_deaf_generator_is_a_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "deaf", (__name__, "Deaf"))
    monkeypatch.setattr(health, "LONG_ALIKE", 100)
    result = run(tmp_path / "run", "deaf", steps=200)
    assert "collapse" in kinds(result)
    assert result.metrics["health/diversity"] < 0.01
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["warnings"] == result.warnings
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line.get("warning") == "collapse"]
    assert len(logged) == 1, "once, however long it lasts"
    assert logged[0]["step"] == 50 * PATIENCE
    assert logged[0]["remedy"] == REMEDIES["collapse"]


def test_a_frozen_generator_is_overpowered_and_its_gradient_vanishes(tmp_path: Path) -> None:
    result = run(
        tmp_path / "run", loss="saturating", generator_rate=1e-12, critic_rate=3e-3, steps=600
    )
    assert {"critic_overpowers", "vanishing_gradients"} <= kinds(result)


def test_exploding_weights_are_reported_before_the_run_ends(tmp_path: Path) -> None:
    with pytest.raises(MedgenError, match="is not finite") as caught:
        run(tmp_path / "run", loss="wasserstein", critic_rate=1e20, generator_rate=1e20)
    assert "lower learning rate" in str(caught.value.hint)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["warning"] == "not_finite"
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "wasserstein", "penalty": "wgan_gp", "penalty_weight": 1.0, "n_critic": 2},
    ],
    ids=["non_saturating", "wgan_gp"],
)
def test_a_healthy_run_warns_of_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    result = run(tmp_path / "run", **settings)
    assert result.warnings == []
    assert result.metrics["health/diversity"] > 0.6


def ring(modes: int, count: int = 128) -> Tensor:
    """Points on ``modes`` of eight Gaussians ``(count, 2, 1, 1)``."""
    generator = torch.Generator().manual_seed(modes)
    angle = 2 * torch.pi * (torch.arange(count) % modes) / 8
    points = torch.stack([angle.cos(), angle.sin()], 1)
    points += 0.02 * torch.randn(count, 2, generator=generator)
    return points[:, :, None, None]


@pytest.mark.parametrize(("modes", "expected"), [(8, set()), (4, {"missing_modes"})])
def test_missing_modes_are_told_from_all_of_them(modes: int, expected: set[str]) -> None:
    watch = Health(ring(8))
    found = [watch.look(ring(modes), n * LONG_ALIKE) for n in range(PATIENCE)]
    assert {finding.kind for finding in found[-1][1]} == expected
    assert all(not findings for _, findings in found[:-1]), "not before it has lasted"
    assert found[0][0]["health/coverage"] == pytest.approx(modes / 8, abs=0.05)


def test_within_a_condition_images_must_differ_too() -> None:
    """One image for each of two conditions is a collapse, though the two differ."""
    condition = torch.arange(64) % 2
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(64, 1, 8, 8, generator=generator) + 3 * condition[:, None, None, None]
    made = 3.0 * condition[:, None, None, None].expand(64, 1, 8, 8)
    values, _ = Health(real, condition).look(made, 0)
    assert values["health/diversity"] == pytest.approx(0, abs=1e-6)
    assert Health(real).look(made, 0)[0]["health/diversity"] > 0.2


def observed(steps: int, **values: float) -> list[str]:
    watch = Health(ring(8))
    names = {
        "accuracy": "part/critic/accuracy", "loss": "loss/critic",
        "gradient": "gradient/generator",
    }  # fmt: skip
    step = {names[name]: value for name, value in values.items()}
    return [finding.kind for _ in range(steps) for finding in watch.observe(step)]


def test_a_critic_may_win_for_a_while_and_a_wasserstein_critic_for_ever() -> None:
    steps = WINDOW * LONG_OVERPOWERED
    assert observed(steps - 1, accuracy=1.0, loss=0.01, gradient=1.0) == []
    assert observed(steps, accuracy=1.0, loss=0.01, gradient=1.0) == ["critic_overpowers"]
    assert observed(3 * steps, accuracy=1.0, loss=-5.0, gradient=1.0) == []
    assert observed(3 * steps, accuracy=0.9, loss=0.01, gradient=1.0) == []


def test_a_gradient_vanishes_relative_to_what_it_was() -> None:
    watch = Health(ring(8))
    found = []
    for gradient in [1.0] * WINDOW + [1e-2] * WINDOW * 10 + [1e-4] * WINDOW * LONG_VANISHED:
        found += watch.observe({"gradient/generator": gradient})
    assert [finding.kind for finding in found] == ["vanishing_gradients"]


def test_precision_and_coverage_of_the_same_images_are_complete() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(100, 4, generator=generator)
    assert precision_and_coverage(real, real) == (1.0, 1.0)
    far = real + 100
    assert precision_and_coverage(real, far) == (0.0, 0.0)
