from __future__ import annotations

import pytest
import torch

from medgen.errors import InputError
from medgen.methods import build, method_names


def test_the_score_is_the_mean_over_channels() -> None:
    image = torch.rand(2, 3, 4, 5)
    score = build("intensity", {"spatial_dims": 2}).predict(image)["score"]
    torch.testing.assert_close(score[:, 0], (image[:, 0] + image[:, 1] + image[:, 2]) / 3)


def test_a_single_channel_is_its_own_score_but_not_the_same_memory() -> None:
    image = torch.rand(1, 1, 4, 5)
    score = build("intensity", {"spatial_dims": 2}).predict(image)["score"]
    assert torch.equal(score, image)
    score += 1
    assert not torch.equal(score, image)


@pytest.mark.parametrize(("typed", "meant"), [("intensty", "intensity"), ("VEA", "vae")])
def test_an_unknown_method_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean '{meant}'"):
        build(typed, {})


def test_the_registry_lists_its_names() -> None:
    assert method_names()[0] == "intensity"
