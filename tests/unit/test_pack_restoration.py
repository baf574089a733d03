"""From a training run of a restoration method to its package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

from medgen.errors import InputError, PackageError
from medgen.methods import build
from medgen.methods._restoring import Restored
from medgen.package import ModelPackage, load_package, verify_package
from medgen.restoration_sets import RestorationSource
from medgen.tasks.pack import pack, read_recipe
from medgen.tasks.pack_restoration import SpreadRecipe, calibrate, soften

RECIPE: dict[str, Any] = {
    "task": "denoise", "name": "tiny-denoise", "version": "0.1.0", "summary": "tiny",
    "intended_use": "tests", "limitations": "many", "training_config": "configs/none.yaml",
    "contract": {"spatial_dims": [2, 3]}, "spread": {"batches": 4},
    "training_data": [{"name": "phantoms", "licence": "none", "cases": 0}],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medgen.training import train
    from medgen.training.config import TrainingConfig

    folder = tmp_path_factory.mktemp("runs") / "denoise"
    config = TrainingConfig.model_validate(
        {
            "name": "tiny", "seed": 1, "steps": 2, "batch_size": 4, "method": "dncnn",
            "config": {"spatial_dims": 2, "input_slices": 3, "depth": 3, "width": 4},
            "data": {
                "kind": "restoration", "task": "denoise", "anatomy": {"kind": "phantoms"},
                "size": [32, 40], "spacing_mm": 4.0, "slices_per_slab": 2,
            },
        }
    )  # fmt: skip
    train(config, folder, progress=False)
    return folder


def recipe(tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return read_recipe(path)


@pytest.fixture(scope="module")
def package(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    folder = tmp_path_factory.mktemp("package")
    return pack(run, recipe(folder), folder / "tiny-denoise")


def test_a_package_says_what_the_run_knows(package: ModelPackage) -> None:
    block = package.manifest.restoration
    assert block is not None
    assert set(block.noise) == {"gaussian", "rician", "poisson"}
    assert block.sources == ("any",)
    assert block.spread is not None
    assert block.spread.level == 0.9
    assert 0.5 < block.spread.coverage <= 1
    assert package.preparation.brightest is None
    assert package.preparation.spacing_mm == 4.0
    assert package.inference.mode == "2.5d"
    assert package.inference.tile == (32, 40)  # as it was trained
    card = (package.folder / "CARD.md").read_text()
    assert f"held {block.spread.coverage:.1%}" in card.replace("\n", " ")


def test_its_pictures_and_golden_case_are_small(package: ModelPackage) -> None:
    picture = (package.folder / "samples.jpg").read_bytes()
    assert len(picture) <= 60_000
    shown = np.asarray(PIL.Image.open(io.BytesIO(picture)))
    assert shown.shape == (6 * 120, 4 * 96)  # upright, and three times as large
    assert shown.std() > 10
    golden = sum(path.stat().st_size for path in (package.folder / "golden").iterdir())
    assert golden <= 40_000


def test_it_verifies_unless_its_golden_case_differs(
    package: ModelPackage, monkeypatch: Any
) -> None:
    assert verify_package(load_package(package.folder)) <= 5e-3
    known = package.arrays("golden/expected.safetensors")
    monkeypatch.setattr(
        ModelPackage, "arrays",
        lambda self, name, real=ModelPackage.arrays: {
            key: value + np.float16(0.02) for key, value in known.items()
        } if "expected" in name else real(self, name),
    )  # fmt: skip
    with pytest.raises(PackageError, match="another"):
        verify_package(package)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "inpaint"}, "the recipe is for inpaint, but the run trained denoise"),
        ({"preparation": {"brightest": 1.5}}, "scaled back"),
        ({"preparation": {"normalisation": "equalise"}}, "scaled back"),
        ({"restoration": {"scales": "two"}}, "restoration in the recipe"),
    ],
)
def test_recipes_that_do_not_fit(run: Path, tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pack(run, recipe(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_was_trained_on_does_not_calibrate(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RestorationSource, "holds_out", False)
    with pytest.raises(InputError, match="held nothing out"):
        pack(run, recipe(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Guess:
    """A network that is off by Laplace noise, whose scale it states too small by half."""

    channels, input_slices, divisor, spatial_dims = 1, 1, 1, 2

    def predict(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = torch.linspace(0.01, 0.1, image.shape[-1]).expand_as(image)
        noise = torch.distributions.Laplace(0.0, scale).sample()
        return {"output": noise, "spread": scale / 2}

    def eval(self) -> Guess:
        return self


class Zeros:
    """Held-out batches whose truth is 0."""

    def validation_batch(self, index: int) -> dict[str, torch.Tensor]:
        image = torch.full((4, 1, 64, 64), 0.5)
        mask = torch.ones_like(image)
        mask[:, :, :10] = 0
        return {"image": image, "target": torch.zeros_like(image), "mask": mask}


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_calibration_covers_what_it_says(level: float) -> None:
    torch.manual_seed(0)
    found, measured = calibrate(Guess(), Zeros(), SpreadRecipe(level=level, batches=8))
    # The interval of a Laplace distribution has the half width -b ln(1 - level); b was halved.
    assert found.factor == pytest.approx(-2 * np.log(1 - level), rel=0.02)
    assert found.coverage == pytest.approx(level, abs=0.01)
    assert measured["coverage_sure"] == pytest.approx(level, abs=0.02)
    assert measured["coverage_unsure"] == pytest.approx(level, abs=0.02)
    assert measured["error"] == pytest.approx(0.055, rel=0.03)
    assert measured["input_error"] == pytest.approx(0.5)


def test_the_manifest_belongs_to_its_task(package: ModelPackage) -> None:
    from pydantic import ValidationError

    from medgen.manifest import Manifest

    values = package.manifest.model_dump(mode="json")
    for wrong in ({"task": "detect-anomalies"}, {"restoration": None}, {"task": "translate"}):
        with pytest.raises(ValidationError):
            Manifest.model_validate({**values, **wrong})


class TooFar:
    """Corrects everything by so many times what would be right."""

    channels, input_slices = 1, 3

    def __init__(self, times: float) -> None:
        self.times, self.strength = times, 1.0

    def __call__(self, image: torch.Tensor) -> Restored:
        middle = image[:, 1:2]
        return Restored(middle + self.strength * self.times * (1 - middle), None)

    def soften(self, strength: float) -> None:
        self.strength *= strength

    def eval(self) -> TooFar:
        return self


class Ones:
    """The truth is 1; what stands outside the mask must not matter."""

    def validation_batch(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        image = torch.rand((4, 3, 16, 16), generator=generator)
        mask = (torch.rand((4, 1, 16, 16), generator=generator) < 0.3).float()
        target = torch.where(mask > 0, 1.0, -50.0)
        return {"image": image, "target": target, "mask": mask}


@pytest.mark.parametrize(("times", "kept"), [(2.0, 0.5), (1.25, 0.8), (1.0, 1.0), (0.5, 1.0)])
def test_corrections_are_softened_to_what_fits(times: float, kept: float) -> None:
    method = TooFar(times)
    assert soften(method, Ones(), 6) == pytest.approx(kept, abs=1e-6)
    assert method.strength == pytest.approx(kept, abs=1e-6)


def test_corrections_that_only_harm_are_refused() -> None:
    with pytest.raises(InputError, match="lead away from the truth"):
        soften(TooFar(-0.5), Ones(), 6)
    with pytest.raises(InputError, match="no corrections"):
        soften(Guess(), Ones(), 6)


@pytest.mark.parametrize("dims", (2, 3))
def test_a_softened_network_changes_its_part(dims: int) -> None:
    """Every voxel of the correction, and nothing of the spread."""
    torch.manual_seed(0)
    network: Any = build(
        "inpaint_unet", {"spatial_dims": dims, "fold": 2, "features": [4, 4, 4, 4, 4]}
    ).eval()
    image = torch.rand((2, 2, *(32,) * dims))
    image[:, 1] = (image[:, 1] > 0.5).float()
    with torch.inference_mode():
        before = network(image)
        network.soften(0.25)
        after = network(image)
    given = image[:, :1]
    torch.testing.assert_close(after.output - given, 0.25 * (before.output - given))
    torch.testing.assert_close(after.log_spread, before.log_spread)
