"""A trained generator becomes a package that knows what it was trained on and lacks its critic."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import load
from tiny_packages import save_features

from medgen.errors import InputError
from medgen.package import (
    ATTRIBUTES,
    TRAINING_FEATURES,
    WEIGHTS,
    ModelPackage,
    load_package,
    verify_package,
)
from medgen.tasks.nearest import TrainingImages, training_images
from medgen.tasks.pack import pack, read_recipe
from medgen.tasks.pack_recipe import Recipe
from medgen.tasks.synthesize import synthesize

RECIPE = """
task: synthesize
name: tiny-colon
version: 0.1.0
summary: Noise in two colours.
intended_use: Tests.
limitations: It has learnt nothing.
training_config: configs/tiny.yaml
extractor: EXTRACTOR
synthesis: {modality: GM, body_part: COLON, default_truncation: 0.9}
attributes: [{name: lumen, measure: white_fraction, images: 20, share: 0.25}]
training_data: [{name: noise, licence: CC0-1.0, cases: 0}]
citations: ["Nobody, Noise, 2026."]
metrics: [{name: FID, value: 1.5, data: noise, split: held out, interval: [1.0, 2.0]}]
"""


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return save_features(tmp_path_factory.mktemp("models") / "tiny-features")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, extractor: ModelPackage) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE.replace("EXTRACTOR", str(extractor.folder)))
    return read_recipe(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue noise of 12 patients with two tiles each."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name, channel in (("cancer", 0), ("benign", 2)):
        (folder / name).mkdir()
        for patient in range(12):
            for tile in range(2):
                pixels = random.integers(0, 80, (16, 16, 3)).astype(np.uint8)
                pixels[..., channel] += 150
                PIL.Image.fromarray(pixels).save(folder / name / f"{patient}_{tile}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    from medgen.training import train
    from medgen.training.config import TrainingConfig

    config = TrainingConfig(
        name="tiny",
        method="stylegan2",
        config={
            "channels": 3, "image_size": [16, 16], "conditions": 2, "latent": 8, "style": 8,
            "mapping_layers": 2, "generator_base": 64, "generator_max": 8, "critic_base": 64,
            "critic_max": 8,
        },
        data={
            "kind": "images", "folder": str(data), "group_pattern": "^([^_]+)_",
            "validation_fraction": 0.25, "channels": 3,
        },
        steps=2,
        batch_size=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(config, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def package(run: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return pack(run, recipe, tmp_path_factory.mktemp("packages") / "tiny-colon")


def test_it_verifies_and_makes_images(package: ModelPackage) -> None:
    assert verify_package(package) < 1e-3
    made = synthesize(package, conditions="cancer", n=2, device="cpu")
    assert made.images().shape == (2, 3, 16, 16)
    assert made.maker.wish.truncation == 0.9


def test_it_says_what_the_run_knows(package: ModelPackage) -> None:
    synthesis = package.synthesis
    assert synthesis.condition_names == ("benign", "cancer")
    assert synthesis.orientation == "LP"
    assert synthesis.modality == "GM"
    facts = package.manifest.training_data[0]
    assert facts.cases == len(facts.hashed_ids) > 0
    card = (package.folder / "CARD.md").read_text()
    for text in ("2 steps", "Nobody, Noise, 2026", "CC0-1.0", "1.500 (1.000 to 2.000)", "lumen"):
        assert text in card
    with PIL.Image.open(package.folder / "samples.jpg") as image:
        assert image.width > 500


def test_what_only_training_needs_is_left_out(package: ModelPackage) -> None:
    weights = load(lzma.decompress((package.folder / WEIGHTS).read_bytes()))
    assert weights
    assert not [name for name in weights if name.startswith(("critic.", "augment."))]
    assert {array.dtype.name for array in weights.values()} <= {"float16", "int64", "bool"}


def test_training_images_are_known_and_held_out_ones_were_not_used(
    package: ModelPackage, extractor: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = package.arrays(TRAINING_FEATURES)
    count = package.manifest.training_data[0].cases
    assert len(arrays["features"]) == 4 * count  # two tiles in each of two conditions
    assert len(arrays["held_out_distances"]) == 48 - 4 * count
    assert set(arrays["condition"].tolist()) == {0, 1}
    assert "is not there" in str(training_images(package))
    monkeypatch.setenv("MEDGEN_MODELS", str(extractor.folder))
    near = training_images(package)
    assert isinstance(near, TrainingImages)


def test_attributes_are_means_of_styles(package: ModelPackage) -> None:
    arrays = package.arrays(ATTRIBUTES)
    assert set(arrays) == {
        "benign:lumen", "benign:no_lumen", "cancer:lumen", "cancer:no_lumen",
    }  # fmt: skip
    assert {array.shape for array in arrays.values()} == {(8,)}


def test_packing_twice_gives_the_same_bytes(
    run: Path, recipe: Recipe, package: ModelPackage, tmp_path: Path
) -> None:
    again = pack(run, recipe, tmp_path / "tiny-colon")
    assert again.manifest.sha256 == package.manifest.sha256


def test_data_that_have_moved_are_found_where_they_are_said_to_be(
    run: Path, recipe: Recipe, data: Path, package: ModelPackage, tmp_path: Path
) -> None:
    moved = tmp_path / "run"
    moved.mkdir()
    (moved / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
    record = json.loads((run / "training.json").read_text())
    record["config"]["data"]["folder"] = str(tmp_path / "nowhere")
    (moved / "training.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="nowhere"):
        pack(moved, recipe, tmp_path / "out")
    again = pack(moved, recipe, tmp_path / "out" / "tiny-colon", changes=[f"data.folder={data}"])
    assert again.manifest.sha256 == package.manifest.sha256
    with pytest.raises(InputError, match=r"data\.KEY=VALUE"):
        pack(moved, recipe, tmp_path / "out2", changes=["config.latent=3"])


def test_recipes_that_do_not_fit(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for change, problem in (
        (("task: synthesize", "task: eat-lunch"), "task must be one of"),
        (("task: synthesize", "task: detect-anomalies"), "Field required"),
        (("measure: white_fraction", "measure: colour"), "unknown measure"),
        (("extractor: EXTRACTOR", "extractor: no-such"), "unknown model"),
        (("modality: GM", "colour: GM"), "colour"),
    ):
        path.write_text(RECIPE.replace(*change).replace("EXTRACTOR", str(tmp_path)))
        with pytest.raises(InputError, match=problem):
            wanted = read_recipe(path)
            if "EXTRACTOR" in RECIPE.replace(*change):
                wanted = wanted.model_copy(update={"extractor": recipe.extractor})  # type: ignore[attr-defined]
            pack(run, wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "content", "problem"), [
    ("training.json", b"[]", "not written by medgen train"),
    ("training.json", b'{"finished": true}', "not written by medgen train"),
    ("weights.safetensors", b"", "damaged"),
    ("weights.safetensors", None, "missing"),
])  # fmt: skip
def test_damaged_runs_are_refused(
    run: Path, recipe: Recipe, tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    damaged = tmp_path / "run"
    damaged.mkdir()
    for file in ("training.json", "weights.safetensors"):
        (damaged / file).write_bytes((run / file).read_bytes())
    if content is None:
        (damaged / name).unlink()
    else:
        (damaged / name).write_bytes(content)
    with pytest.raises(InputError, match=problem):
        pack(damaged, recipe, tmp_path / "out")


def test_a_task_that_is_no_name_and_a_key_below_a_value_are_refused(
    run: Path, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text("task: [synthesize]\n")
    with pytest.raises(InputError, match="task must be one of"):
        read_recipe(tmp_path / "x.yaml")
    with pytest.raises(InputError, match="has no keys of its own"):
        pack(run, recipe, tmp_path / "out", changes=["data.folder.x=1"])


def test_packages_survive_the_shelf(package: ModelPackage) -> None:
    assert load_package(package.folder).sha256 == package.sha256
