"""A training run becomes a package that loads, verifies, and never trained on its controls."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import medgen
from medgen.errors import InputError
from medgen.package import load_package, run_model, verify_package
from medgen.phantoms import brain
from medgen.tasks.pack import pack, read_recipe
from medgen.tasks.pack_detection import DetectionRecipe

RECIPE = """
name: tiny
version: 0.1.0
summary: A tiny network for a test.
intended_use: Tests.
limitations: It has learnt nothing.
training_config: configs/tiny.yaml
contract: {spatial_dims: [2, 3], spacing_mm: 3.0}
preparation: {spacing_mm: 3.0}
inference: {mode: 2.5d, views: [axial]}
calibration: {scans: 3, contrasts: [flair], minimum_volume_mm3: 100}
training_data: [{name: phantoms, licence: Apache-2.0, cases: 1}]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> DetectionRecipe:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return read_recipe(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medgen.training import train
    from medgen.training.config import TrainingConfig

    config = TrainingConfig(
        name="tiny",
        method="restore",
        config={"spatial_dims": 2, "input_slices": 3, "features": [4, 4, 8, 8, 8]},
        data={"kind": "phantoms", "heads": 1, "spacing_mm": 3.0, "size": [48, 64]},
        steps=2,
        batch_size=4,
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(config, folder, progress=False)
    return folder


def test_a_packed_run_detects_and_verifies(
    run: Path, recipe: DetectionRecipe, tmp_path: Path
) -> None:
    pack(run, recipe, tmp_path / "tiny")
    package = load_package(tmp_path / "tiny")
    assert verify_package(package) < 1e-4
    assert package.calibration is not None
    assert len(package.calibration.scan_scores) == 3
    assert "drawn, not acquired" in package.calibration.threshold_rule
    scan = brain((40, 48, 32), spacing_mm=3.0, seed=9).image
    result = run_model(package, scan)
    assert result.map.shape == scan.geometry.shape
    card = (package.folder / "CARD.md").read_text()
    assert "2 steps" in card
    assert package.calibration.threshold_rule in card


def test_packing_twice_gives_the_same_bytes(
    run: Path, recipe: DetectionRecipe, tmp_path: Path
) -> None:
    first = pack(run, recipe, tmp_path / "a" / "tiny")
    second = pack(run, recipe, tmp_path / "b" / "tiny")
    assert first.manifest.sha256 == second.manifest.sha256


def test_an_unfinished_run_is_refused(run: Path, recipe: DetectionRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished training run"):
        pack(tmp_path, recipe, tmp_path / "out")
    record = json.loads((run / "training.json").read_text())
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "training.json").write_text(json.dumps({**record, "finished": False}))
    with pytest.raises(InputError, match="stopped at step 2"):
        pack(stopped, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_preparation_than_in_training_is_refused(
    run: Path, recipe: DetectionRecipe, tmp_path: Path
) -> None:
    other = recipe.model_copy(update={"preparation": {"spacing_mm": 2.0}})
    with pytest.raises(InputError, match="trained on"):
        pack(run, other, tmp_path / "out")


def test_every_contrast_meets_every_brain(
    run: Path, recipe: DetectionRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medgen.anatomy import AnatomySource

    drawn = []
    scan = AnatomySource.healthy_scan

    def watched(self: AnatomySource, index: int, contrast: str) -> object:
        drawn.append((index % len(self.validation_subjects), contrast))
        return scan(self, index, contrast)

    monkeypatch.setattr(AnatomySource, "healthy_scan", watched)
    calibration = recipe.calibration.model_copy(update={"contrasts": ("t1", "t2", "flair")})
    pack(run, recipe.model_copy(update={"calibration": calibration}), tmp_path / "tiny")
    assert {contrast for _, contrast in drawn} == {"t1", "t2", "flair"}


def test_a_wrong_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(InputError, match="cannot read"):
        read_recipe(path)
    path.write_text(RECIPE + "colour: blue\n")
    with pytest.raises(InputError, match="colour"):
        read_recipe(path)


PICTURES = """
name: pictures
version: 0.1.0
summary: A tiny network for pictures.
intended_use: Tests.
limitations: It has learnt nothing.
training_config: configs/pictures.yaml
contract: {spatial_dims: [2], channels: 3, modalities: [SM], body_part: COLON, value_range: [0, 1]}
preparation:
  {spacing_mm: null, longest_side: 32, brain: none, margin_mm: 0, normalisation: eight_bits}
inference: {mode: 2d}
scoring: {evidence: residual_absolute}
training_data: [{name: noise, licence: CC0, cases: 1}]
"""


def _noise_set(folder: Path) -> None:
    """Twelve pictures of six people."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(60, 200, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number // 2}_{number}.png")


def test_pictures_are_calibrated_on_people_who_were_held_out(tmp_path: Path) -> None:
    from medgen.io import read
    from medgen.training import train
    from medgen.training.config import TrainingConfig

    images, recipe_file = tmp_path / "images", tmp_path / "pictures.yaml"
    images.mkdir()
    _noise_set(images)
    recipe_file.write_text(PICTURES)
    recipe = read_recipe(recipe_file)
    config = TrainingConfig(
        name="pictures",
        method="autoencoder",
        config={"spatial_dims": 2, "channels": 3, "features": [4, 8], "latent_channels": 4},
        data={
            "kind": "normals",
            "folder": str(images),
            "group_pattern": "^(p[0-9])_",
            "validation_fraction": 0.5,
            "size": [32, 32],
            "preparation": recipe.preparation,
        },
        steps=2,
        batch_size=4,
    )
    train(config, tmp_path / "run", progress=False)
    package = pack(tmp_path / "run", recipe, tmp_path / "pictures")
    assert verify_package(package) < 1e-4
    assert package.calibration is not None
    assert package.calibration.spatial_dims == 2
    assert not package.calibration.drawn
    assert package.calibration.subjects == 3
    known = set(package.manifest.training_data[0].hashed_ids)
    trained = {n for n in range(6) if hashlib.sha256(f"p{n}".encode()).hexdigest() in known}
    assert len(trained) == 3
    assert "held out of training" in (package.folder / "CARD.md").read_text()
    detection = medgen.detect_anomalies(images / "p0_0.png", model=package, device="cpu")
    assert detection.p_value is not None
    assert detection.map.shape == read(images / "p0_0.png").geometry.shape

    other = recipe.model_copy(update={"preparation": {**recipe.preparation, "longest_side": 64}})
    with pytest.raises(InputError, match="longest_side"):
        pack(tmp_path / "run", other, tmp_path / "other")
