"""Several folders of images as one source of training batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from medgen.errors import InputError
from medgen.mixed_sets import Mixed, MixedConfig


@pytest.fixture
def folders(tmp_path):
    """Grey pictures of 40 pixels in two conditions; colour ones of 48 x 32; two volumes."""
    random = np.random.default_rng(0)
    for name in ("ill", "well"):
        (tmp_path / "grey" / name).mkdir(parents=True)
        for number in range(6):
            picture = random.integers(0, 100, (40, 40), np.uint8)
            Image.fromarray(picture).save(tmp_path / "grey" / name / f"{name}{number}.png")
    (tmp_path / "colour").mkdir()
    for number in range(8):
        picture = random.integers(0, 255, (32, 48, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "colour" / f"{number}.png")
    (tmp_path / "cut").mkdir()
    for number in range(4):
        image = random.integers(200, 255, (5, 36, 40), np.uint8)
        np.savez(tmp_path / "cut" / f"p{number}_a.npz", image=image, label=(image > 220) * 1)
    return tmp_path


def config(folders, **extra):
    sets = {
        "grey": {"kind": "images", "folder": "grey", "validation_fraction": 0.3},
        "colour": {"kind": "images", "folder": "colour", "validation_fraction": 0.3, "weight": 2},
        "cut": {"kind": "annotated", "folder": "cut", "validation_fraction": 0.3},
    }
    given = {"sets": sets, "folder": folders, "batch_size": 8, "size": 32}
    return MixedConfig(**(given | extra))


def test_every_set_gives_its_part_at_one_size_in_three_channels(folders):
    source = Mixed(config(folders))
    batch = source.batch(0)
    assert set(batch) == {"image"}
    image = batch["image"]
    assert image.shape == (8, 3, 32, 32)
    assert image.min() >= -1 and image.max() <= 1
    colourful = (image[:, 0] != image[:, 1]).flatten(1).any(1)
    assert colourful.tolist() == [False] * 2 + [True] * 4 + [False] * 2
    means = image.mean((1, 2, 3))
    assert means[:2].max() < -0.4 and means[6:].min() > 0.5, "grey ones are dark, cut ones bright"


def test_batches_are_a_function_of_their_number(folders):
    one, two = Mixed(config(folders)), Mixed(config(folders))
    assert torch.equal(one.batch(3)["image"], two.batch(3)["image"])
    assert not torch.equal(one.batch(3)["image"], one.batch(4)["image"])
    assert not torch.equal(one.batch(3)["image"], Mixed(config(folders, seed=1)).batch(3)["image"])


def test_held_out_images_are_never_trained_on(folders):
    source = Mixed(config(folders))
    trained = torch.cat([source.batch(i)["image"] for i in range(12)]).flatten(1)
    held_out = torch.cat([source.validation_batch(i)["image"] for i in range(3)]).flatten(1)
    assert float(torch.cdist(trained, held_out).min()) > 0.1


def test_a_pool_draws_once_and_gives_every_image_in_turn(folders):
    only = {"kind": "images", "folder": "colour", "validation_fraction": 0.3}
    plain = Mixed(config(folders, sets={"a": only}, batch_size=3))
    pooled = Mixed(config(folders, sets={"a": {**only, "pool": 2}}, batch_size=3))
    first = torch.cat([plain.batch(i)["image"] for i in range(2)]).flatten(1)
    drawn = torch.cat([pooled.batch(i)["image"] for i in range(2)]).flatten(1)
    assert (torch.cdist(first, drawn).min(1).values < 0.5).all(), "all of the pool, each once"
    assert torch.equal(pooled.batch(7)["image"], pooled.batch(7)["image"])
    assert torch.equal(pooled.validation_batch(0)["image"], plain.validation_batch(0)["image"])


def test_facts_count_all_sets(folders):
    facts = Mixed(config(folders)).facts
    assert facts["images"] == sum(own["images"] for own in facts["sets"].values())
    assert len(facts["sets"]) == 3 and facts["hashed_ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 2}, "no room"),
        ({"sets": {"a": {"kind": "films"}}}, "must be one of images, annotated"),
        ({"sets": {"a": {"kind": "images", "folder": "no/such/folder"}}}, "no folder"),
        ({"sets": {"a": {"kind": "images", "colour": 1}}}, r"sets.a.colour"),
        ({"sets": {"a": {"kind": "images", "weight": 0}}}, "above 0"),
    ],
)
def test_wrong_settings_are_named(folders, change, message):
    with pytest.raises(InputError, match=message):
        Mixed(config(folders, **change))
