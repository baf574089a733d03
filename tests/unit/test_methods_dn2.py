"""DN2's distances against scikit-learn's neighbours, and its map against the distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from medgen.methods import build

WIDTHS = (4, 8, 8, 8)


def make(**extra: Any) -> Any:
    torch.manual_seed(0)
    small = {"widths": WIDTHS, "stages": (2, 3), "neighbours": 3, "capacity": 20}
    return build("dn2", {"spatial_dims": 2, **small, **extra}).eval()


def learn(method: Any, *batches: Tensor) -> None:
    for healthy in batches:
        assert list(method.losses({"healthy": healthy, "mask": torch.ones_like(healthy)})) == []


@pytest.mark.parametrize("dims", [2, 3])
def test_the_mean_of_the_map_is_the_distance_from_the_nearest_neighbours(dims: int) -> None:
    method = make(spatial_dims=dims, channels=2)
    size = (32, 24, 4)[:dims]
    healthy, image = torch.rand(12, 2, *size), torch.rand(5, 2, *size)
    learn(method, healthy[:7], healthy[7:])
    rows, wanted = (
        method.embed(one).flatten(2).mean(2).double().numpy() for one in (healthy, image)
    )
    reference = NearestNeighbors(n_neighbors=3).fit(rows)
    expected = np.sqrt((reference.kneighbors(wanted)[0] ** 2).mean(1))
    own = np.sqrt((reference.kneighbors()[0] ** 2).mean(1))  # each without itself
    score = method.predict(image)["score"]
    assert float(score.min()) >= 0
    found = score.flatten(1).mean(1).double().numpy()
    np.testing.assert_allclose(found, expected / np.sort(own)[(len(own) - 1) // 2], rtol=1e-3)


def test_the_last_images_are_kept_and_no_others() -> None:
    method, images = make(capacity=6), torch.rand(10, 1, 16, 16)
    learn(method, images[:4], images[4:8], images[8:])
    rows = method.embed(images[4:]).flatten(2).mean(2)
    kept = method.bank.numpy()
    for row in rows.numpy():
        assert np.abs(kept - row).max(1).min() < 1e-6
    assert int(method.count) == 10


def test_an_image_that_was_seen_is_as_near_as_can_be_and_what_was_added_is_shown() -> None:
    method, images = make(neighbours=1, stages=(1, 2)), torch.rand(8, 1, 64, 64)
    learn(method, images)
    assert float(method.predict(images)["score"].max()) == pytest.approx(0, abs=1e-3)
    changed = images[:1].clone()
    changed[:, :, 8:24, 40:56] += 2
    score = method.predict(changed)["score"][0, 0]
    inside = score[4:28, 36:60]
    assert float(inside.sum()) > 0.8 * float(score.sum())


def test_usual_images_score_about_one() -> None:
    method = make(capacity=40)
    images = torch.rand(60, 1, 32, 32)
    learn(method, images[:40])
    assert 0.7 < float(method.predict(images[40:])["score"].mean()) < 1.4
