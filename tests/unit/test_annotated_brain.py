"""Drawn brains: labels fit images, lesions fit conditions, held-out subjects stay out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from medgen.annotated_brain import (
    FEWEST_PIXELS,
    LABELS,
    LESION,
    AnnotatedBrain,
    AnnotatedBrainConfig,
)
from medgen.errors import InputError, LeakageError
from medgen.phantoms import brain

WHITE, CORTEX, FLUID = (LABELS.index(name) for name in ("white_matter", "cortex", "fluid"))
UNSIMULATED = 25  # a white matter lesion that the label maps themselves hold


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three heads and two lesion shapes in a folder."""
    folder = tmp_path_factory.mktemp("heads")
    for seed, name in enumerate("abc"):
        labels = brain((48, 64, 48), spacing_mm=3.0, seed=seed, skull=True).labels
        labels[22:26, 40:44][labels[22:26, 40:44] == 2] = UNSIMULATED
        image = nibabel.Nifti1Image(labels.astype(np.int16), np.diag([3.0, 3, 3, 1]))
        nibabel.save(image, folder / f"{name}.nii.gz")
    masks = np.zeros((2, 20, 20, 20), dtype=bool)
    masks[0, 5:15, 7:13, 6:12] = masks[1, 4:8, 4:16, 8:14] = True
    np.savez(
        folder / "shapes.npz",
        packed=np.packbits(masks.reshape(2, -1), axis=1),
        shape=np.array(masks.shape[1:]),
        affine=np.diag([3.0, 3, 3, 1]),
    )
    return {
        "folder": folder, "lesions": folder / "shapes.npz", "spacing_mm": 3.0, "size": (48, 64),
        "validation_subjects": ("c",), "batch_size": 12, "reach": 0.7,
    }  # fmt: skip


@pytest.fixture(scope="module")
def source(data: dict[str, Any]) -> AnnotatedBrain:
    return AnnotatedBrain(AnnotatedBrainConfig(**data))


@pytest.fixture(scope="module")
def drawn(source: AnnotatedBrain) -> dict[str, Tensor]:
    batches = [source.batch(number) for number in range(12)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def of(drawn: dict[str, Tensor], source: AnnotatedBrain, part: str) -> Tensor:
    """Which images have a condition with this state or contrast."""
    numbers = [n for n, name in enumerate(source.condition_names) if part in name.split(":")]
    return torch.isin(drawn["condition"], torch.tensor(numbers))


def test_a_batch_is_a_pure_function_of_its_number(
    source: AnnotatedBrain, data: dict[str, Any]
) -> None:
    again = AnnotatedBrain(AnnotatedBrainConfig(**data))
    first, other = source.batch(3), again.batch(3)
    assert all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["image"], source.batch(4)["image"])


def test_shapes_ranges_and_names(source: AnnotatedBrain, drawn: dict[str, Tensor]) -> None:
    assert drawn["image"].shape == drawn["labels"].shape == (144, 1, 48, 64)
    assert drawn["image"].dtype == torch.float32
    assert drawn["labels"].dtype == drawn["condition"].dtype == torch.int64
    assert -1 == float(drawn["image"].min()) < float(drawn["image"].max()) <= 1
    assert len(source.condition_names) == 9
    assert set(drawn["condition"].tolist()) == set(range(9))
    assert int(drawn["labels"].max()) < source.label_count == len(source.label_names)


def test_outside_the_labels_there_is_nothing(drawn: dict[str, Tensor]) -> None:
    outside = drawn["labels"] == 0
    assert (drawn["image"][outside] == -1).all()
    assert (drawn["image"][~outside] > -1).float().mean() > 0.9


def test_tissues_are_as_bright_as_the_contrast_says(
    source: AnnotatedBrain, drawn: dict[str, Tensor]
) -> None:
    def mean(contrast: str, label: int) -> float:
        chosen = of(drawn, source, contrast) & of(drawn, source, "healthy")
        return float(drawn["image"][chosen][drawn["labels"][chosen] == label].mean())

    assert mean("t1", WHITE) > mean("t1", CORTEX) + 0.1 > mean("t1", FLUID) + 0.2
    assert mean("t2", FLUID) > mean("t2", CORTEX) + 0.1 > mean("t2", WHITE) + 0.2
    assert mean("flair", CORTEX) > mean("flair", FLUID) + 0.2


def test_lesions_are_labelled_where_the_condition_says_and_nowhere_else(
    source: AnnotatedBrain, drawn: dict[str, Tensor]
) -> None:
    pixels = (drawn["labels"] == LESION).flatten(1).sum(1)
    healthy = of(drawn, source, "healthy")
    assert (pixels[healthy] == 0).all()
    assert (pixels[~healthy] >= FEWEST_PIXELS).all()
    for state in ("lesion", "stroke"):
        assert of(drawn, source, state).float().mean() > 0.15


@pytest.mark.parametrize(("contrast", "sign"), [("flair", 1), ("t2", 1), ("t1", -1)])
def test_lesions_differ_from_white_matter_as_in_the_clinic(
    source: AnnotatedBrain, drawn: dict[str, Tensor], contrast: str, sign: int
) -> None:
    ill = of(drawn, source, contrast) & ~of(drawn, source, "healthy")
    image, labels = drawn["image"][ill], drawn["labels"][ill]
    difference = image[labels == LESION].mean() - image[labels == WHITE].mean()
    assert sign * float(difference) > 0.05


def test_lesions_of_the_label_maps_are_drawn_as_white_matter(source: AnnotatedBrain) -> None:
    found = source.values.index(UNSIMULATED)
    assert any((subject.labels == found).any() for subject in source.subjects)
    assert int(source.tissue[source.drawn[found]]) == WHITE


def test_held_out_subjects_are_never_trained_on(
    source: AnnotatedBrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    cut = source._cut
    monkeypatch.setattr(
        source, "_cut", lambda who, *rest: (used.append(id(who)), cut(who, *rest))[1]
    )
    training = {id(subject) for subject in source.subjects}
    held_out = {id(subject) for subject in source.validation_subjects}
    for number in range(6):
        source.batch(number)
    assert set(used) == training
    used.clear()
    source.validation_batch(0)
    assert set(used) == held_out
    assert source.facts["groups"] == 2
    assert len(source.facts["hashed_ids"]) == 2


def test_leakage_and_missing_parts_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(LeakageError, match="'a'"):
        AnnotatedBrain(
            AnnotatedBrainConfig(**{**data, "subjects": ("a",), "validation_subjects": ("a",)})
        )
    with pytest.raises(InputError, match="lesion shapes"):
        AnnotatedBrain(AnnotatedBrainConfig(**{**data, "lesions": Path("absent.npz")}))
    alone = AnnotatedBrain(AnnotatedBrainConfig(**{**data, "validation_subjects": ()}))
    with pytest.raises(InputError, match="held out"):
        alone.validation_batch(0)
