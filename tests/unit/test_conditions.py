"""Which model makes what was asked for, and what is said when it is not clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_packages import save_generator, save_intensity

from medgen.errors import InputError, PackageError
from medgen.package import ModelPackage, load_package
from medgen.tasks.conditions import choose_model, find_model, resolve_conditions
from medgen.tasks.detect import detect_anomalies

BRAIN = ("healthy:flair", "healthy:t1", "lesion:flair", "lesion:t1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shelf = tmp_path_factory.mktemp("shelf")
    save_generator(shelf / "colon")
    save_generator(shelf / "brain", conditions=BRAIN)
    save_generator(shelf / "plain", conditions=())
    save_intensity(shelf / "finder")
    return shelf


@pytest.fixture(autouse=True)
def shelf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("medgen.package.files.search_folders", lambda: [folder])
    return folder


@pytest.fixture
def brain(shelf: Path) -> ModelPackage:
    return load_package(shelf / "brain")


def test_the_only_model_with_a_condition_is_chosen() -> None:
    assert choose_model(["cancer"]) == "colon"
    assert choose_model(["lesion"]) == "brain"
    assert choose_model(["lesion"], "t1") == "brain"
    assert choose_model([], "flair") == "brain"
    assert choose_model(["healthy:t1", "lesion"]) == "brain"


def test_several_models_are_listed(shelf: Path) -> None:
    with pytest.raises(InputError, match="several models") as caught:
        choose_model([])
    assert "brain, colon, plain" in caught.value.message
    assert "--model" in str(caught.value.hint)


def test_an_unknown_condition_lists_what_exists() -> None:
    with pytest.raises(InputError, match="Did you mean 'cancer'") as caught:
        choose_model(["cancr"])
    hint = str(caught.value.hint)
    assert "colon: cancer, benign" in hint
    assert "plain: none" in hint
    with pytest.raises(InputError, match="no model has all of 'cancer' and 'lesion'"):
        choose_model(["cancer", "lesion"])
    with pytest.raises(InputError, match="contrast 't2'"):
        choose_model(["lesion"], "t2")


def test_a_name_stands_for_all_its_attributes(brain: ModelPackage) -> None:
    assert resolve_conditions(brain, ["lesion"]) == (2, 3)
    assert resolve_conditions(brain, ["lesion"], "flair") == (2,)
    assert resolve_conditions(brain, ["lesion:t1", "lesion", "healthy"]) == (3, 2, 0, 1)
    assert resolve_conditions(brain, []) == (0, 1, 2, 3)
    assert resolve_conditions(brain, [], "t1") == (1, 3)


def test_what_a_model_does_not_have_is_refused(brain: ModelPackage, shelf: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'lesion'"):
        resolve_conditions(brain, ["leson"])
    with pytest.raises(InputError, match=r"no contrast 'flare'.*Did you mean 'flair'"):
        resolve_conditions(brain, ["lesion"], "flare")
    plain = load_package(shelf / "plain")
    assert resolve_conditions(plain, []) == (None,)
    with pytest.raises(InputError, match="no conditions"):
        resolve_conditions(plain, ["cancer"])
    with pytest.raises(InputError, match="no contrast"):
        resolve_conditions(load_package(shelf / "colon"), ["cancer"], "t1")


def test_a_model_for_another_task_names_those_that_can(shelf: Path) -> None:
    with pytest.raises(PackageError, match="needed is one for synthesize") as caught:
        find_model("finder", [])
    assert "brain, colon, plain" in str(caught.value.hint)
    with pytest.raises(PackageError, match="needed is one for detect-anomalies") as caught:
        detect_anomalies("scan.nii.gz", "colon")
    assert "finder" in str(caught.value.hint)
