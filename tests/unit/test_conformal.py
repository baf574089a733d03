"""What n normal scans promise about the next one: exact over every way to choose which is new."""

from __future__ import annotations

from itertools import combinations
from math import comb, isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from medgen.errors import InputError
from medgen.scoring.conformal import (
    drift,
    fewest_normals,
    first_per_person,
    highest_per_person,
    p_values,
    rank_of_limit,
    rate_of_this_draw,
)

# Few distinct values, so that ties happen.
SCORES = st.lists(st.integers(0, 9).map(float), min_size=2, max_size=40)


@given(SCORES)
def test_exchangeable_scores_have_uniform_p_values(scores: list[float]) -> None:
    """Exchangeable means: each of the n + 1 is as likely to be the new one."""
    found = np.array(
        [
            float(p_values(scores[:i] + scores[i + 1 :], score))  # all others are the normals
            for i, score in enumerate(scores)
        ]
    )
    for limit in np.arange(1, len(scores) + 1) / len(scores):
        assert (found <= limit + 1e-12).mean() <= limit + 1e-12
    if len(set(scores)) == len(scores):
        np.testing.assert_allclose(np.sort(found) * len(scores), np.arange(1, len(scores) + 1))


@given(SCORES, st.floats(0.02, 0.9))
def test_the_limit_is_exceeded_as_seldom_as_promised(scores: list[float], rate: float) -> None:
    others = len(scores) - 1
    if others < fewest_normals(rate):
        with pytest.raises(InputError, match=f"at least {fewest_normals(rate)} normal people"):
            rank_of_limit(others, rate)
        return
    rank = rank_of_limit(others, rate)
    exceeded = [
        score > sorted(scores[:i] + scores[i + 1 :])[rank - 1] for i, score in enumerate(scores)
    ]
    assert np.mean(exceeded) <= rate + 1e-9


@pytest.mark.parametrize(
    ("rate", "fewest"), [(0.05, 19), (0.1, 9), (0.01, 99), (1 / 3, 2), (1 / 49, 48), (0.5, 1)]
)
def test_the_fewest_normals_are_just_enough(rate: float, fewest: int) -> None:
    assert fewest_normals(rate) == fewest
    assert rank_of_limit(fewest, rate) == fewest
    with pytest.raises(InputError, match="Add normal scans") as caught:
        rank_of_limit(fewest - 1, rate)
    # What the hint offers instead is possible.
    offered = float(str(caught.value).split("rate of ")[-1].split()[0])
    assert fewest == 1 or rank_of_limit(fewest - 1, offered) <= fewest - 1


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        fewest_normals(rate)


def test_the_rate_of_one_draw_is_bounded_as_often_as_stated() -> None:
    """Uniform scores: the true rate beyond a limit is one minus that limit."""
    normals = np.random.default_rng(0).random((4000, 40))
    rank = rank_of_limit(40, 0.1)
    true = 1 - np.sort(normals, axis=1)[:, rank - 1]
    assert true.mean() == pytest.approx(1 - rank / 41, abs=0.003)
    assert true.mean() <= 0.1
    share = (true < rate_of_this_draw(40, rank)).mean()
    assert share == pytest.approx(0.95, abs=0.015)


def test_each_person_counts_once_with_the_highest_score() -> None:
    found = highest_per_person([1.0, 5.0, 2.0, 4.0], ["b", "a", "b", "a"])
    assert found.tolist() == [2.0, 5.0]
    assert first_per_person([1.0, 5.0, 2.0, 4.0], ["b", "a", "b", "a"]).tolist() == [1.0, 5.0]


def orders(n: int, m: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every way in which n normals and m others can be interleaved."""
    every = np.arange(n + m, dtype=float)
    return [
        (np.delete(every, chosen), every[list(chosen)]) for chosen in combinations(range(n + m), m)
    ]


def test_the_chances_of_drift_are_those_of_counting() -> None:
    found = [drift(*order, rate=0.2) for order in orders(9, 4)]
    assert len(found) == comb(13, 4)
    for one in found[:: len(found) // 40]:
        as_many = np.mean([other.alarms >= one.alarms for other in found])
        as_far = np.mean([other.distance >= one.distance - 1e-12 for other in found])
        assert isclose(one.alarms_p or 0, as_many, rel_tol=1e-9)
        assert isclose(one.distance_p, as_far, rel_tol=1e-9)
    assert isclose(min(one.p_value for one in found), found[0].smallest_p, rel_tol=1e-9)
    for level in (0.02, 0.05, 0.2):
        called = np.mean([one.p_value <= level for one in found])
        assert called <= level


def test_the_size_of_a_difference_is_the_area_under_the_curve() -> None:
    generator = np.random.default_rng(1)
    normals, batch = generator.normal(size=30).round(1), generator.normal(0.5, size=20).round(1)
    labels = np.repeat([0, 1], [30, 20])
    expected = roc_auc_score(labels, np.concatenate([normals, batch]))
    found = drift(normals, batch)
    assert found.auroc == pytest.approx(expected)
    assert found.distance == pytest.approx(stats.ks_2samp(normals, batch).statistic)


def test_a_verdict_for_each_case() -> None:
    generator = np.random.default_rng(2)
    normals = generator.normal(size=60)
    assert drift(normals, generator.normal(size=40)).verdict == "no drift seen"
    assert drift(normals, generator.normal(1.5, size=40)).verdict == "drift"
    assert drift(normals, [9.0]).verdict == "too few scans to tell"
    # A few very high scores among many normal ones move the tail and hardly anything else.
    mixed = np.concatenate([generator.normal(size=85), np.full(15, 9.0)])
    tail = drift(generator.normal(size=200), mixed)
    assert tail.verdict == "drift"
    assert tail.alarms_p is not None
    assert tail.alarms_p < tail.distance_p


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(InputError, match="no scan scores"):
        drift([1.0, 2.0], [])
    with pytest.raises(InputError, match="not finite"):
        drift([1.0, 2.0], [np.nan])
