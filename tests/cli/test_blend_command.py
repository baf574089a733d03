"""``medgen models blend`` as a person runs it, and what `models show` says of such models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_packages import Cli, save_restorer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shelf with two models for super-resolution, and one for noise."""
    folder = tmp_path_factory.mktemp("pair")
    save_restorer(folder / "faithful", "super-resolve")
    save_restorer(folder / "sharp", "super-resolve")
    save_restorer(folder / "smooth", "denoise")
    return folder


@pytest.fixture
def blend(cli: Cli, pair: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MEDGEN_MODELS", str(pair))
    return lambda *words: cli("models", *words)


def test_a_blend_is_written_and_shown(blend: Any, tmp_path: Path) -> None:
    made = blend("blend", "faithful", "sharp", "--weight", 0.3, "-o", tmp_path / "between")
    assert made.exit_code == 0, made.output
    assert str(tmp_path / "between") in made.stdout
    shown = blend("show", tmp_path / "between")
    summary = json.loads(blend("show", tmp_path / "between", "--json").stdout)["summary"]
    assert summary == "0.7 of faithful and 0.3 of sharp"
    assert "not calibrated" in shown.stdout
    assert "scales" in shown.stdout
    assert "coverage=0.9" in blend("show", "faithful").stdout
    assert blend("verify", tmp_path / "between").exit_code == 0
    again = blend("blend", "faithful", "sharp", "--weight", 0.3, "-o", tmp_path / "between")
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("second", "weight", "problem"),
    [
        ("sharp", "-0.5", "between 0 and 1"),
        ("sharp", "nan", "between 0 and 1"),
        ("smooth", "0.5", "differ in their task"),
        ("shrap", "0.5", "sharp"),
    ],
)
def test_bad_input_ends_with_2_and_writes_nothing(
    blend: Any, tmp_path: Path, second: str, weight: str, problem: str
) -> None:
    found = blend("blend", "faithful", second, "--weight", weight, "-o", tmp_path / "new")
    assert found.exit_code == 2
    assert problem in found.stderr
    assert not list(tmp_path.iterdir())
