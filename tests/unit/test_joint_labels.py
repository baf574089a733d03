"""Label maps as channels: what goes in comes out, whatever the generator is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.errors import InputError
from medgen.training.batches import build_source
from medgen.training.config import TrainingConfig
from medgen.training.joint_labels import JointConfig, JointLabels, join, separate


@given(
    count=st.integers(2, 6), channels=st.integers(1, 3), dims=st.sampled_from([2, 3]),
    seed=st.integers(0, 99), noise=st.floats(0, 0.99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_separate_undoes_join(count, channels, dims, seed, noise):
    """Also of a generator that is unsure: only the order of the label channels counts."""
    generator = torch.Generator().manual_seed(seed)
    image = 2 * torch.rand(2, channels, *(5, 4, 3)[:dims], generator=generator) - 1
    labels = torch.randint(count, (2, 1, *image.shape[2:]), generator=generator)
    joint = join(image, labels, count)
    assert joint.shape == (2, channels + count, *image.shape[2:])
    assert set(joint[:, channels:].unique().tolist()) <= {-1.0, 1.0}
    joint[:, channels:] += noise * (2 * torch.rand(joint[:, channels:].shape) - 1)
    again, found = separate(joint, count)
    assert torch.equal(again, image)
    assert torch.equal(found, labels)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="0 to 1, got 0 to 2"):
        join(torch.zeros(1, 1, 1, 3), torch.tensor([[[[0, 1, 2]]]]), 2)
    with pytest.raises(InputError, match="more than 4 channels"):
        separate(torch.zeros(1, 4, 2, 2), 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for patient in range(4):
        image = random.integers(0, 255, (3, 16, 16), dtype=np.uint8)
        label = random.integers(0, 3, (3, 16, 16), dtype=np.uint8)
        np.savez(tmp_path / f"patient{patient}_a.npz", image=image, label=label)
    return tmp_path


def test_the_source_packs_what_the_annotated_set_holds(folder: Path) -> None:
    source = JointLabels(JointConfig(folder=folder, batch_size=4, size=16))
    assert (source.channels, source.label_count) == (4, 3)
    for batch, plain in (
        (source.batch(2), source.pairs.batch(2)),
        (source.validation_batch(0), source.pairs.validation_batch(0)),
    ):
        image, labels = separate(batch["image"], 3)
        assert torch.equal(image, plain["image"])
        assert torch.equal(labels, plain["labels"])
        assert "labels" not in batch


def test_a_method_with_the_wrong_number_of_channels_is_told_the_right_one(folder: Path) -> None:
    from medgen.methods import build

    config = TrainingConfig(
        name="t", method="gan", steps=1, batch_size=4,
        data={"kind": "annotated_joint", "folder": str(folder)},
    )  # fmt: skip
    settings = {"image_size": (16, 16), "width": 4, "latent": 4}
    source = build_source(config, build("gan", {**settings, "channels": 4}))
    assert source.batch(0)["image"].shape == (4, 4, 16, 16)
    with pytest.raises(InputError, match=r"makes 2 channels.*are 4") as caught:
        build_source(config, build("gan", {**settings, "channels": 2}))
    assert caught.value.hint == "Set config.channels to 4."
