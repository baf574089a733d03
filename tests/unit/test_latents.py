"""Latent vectors: the same for every number asked for, mixed without losing their variance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.errors import InputError
from medgen.tasks.latents import (
    LARGEST_SEED,
    Code,
    check_seed,
    check_terms,
    draw,
    evaluate,
    lattice,
    line,
    mix,
    parse_expression,
)

NAMES = st.from_regex(r"[a-z_]{1,8}(:[a-z_]{1,8})?", fullmatch=True)


def code(values: list[float], space: str = "z", condition: int | None = 0) -> Code:
    return Code(np.array(values, np.float32), space, condition)  # type: ignore[arg-type]


@given(st.integers(0, LARGEST_SEED), st.integers(0, 10**6))
def test_a_latent_depends_on_seed_and_number_alone(seed: int, index: int) -> None:
    first = draw((4,), seed, index)
    assert first.dtype == np.float32
    assert np.array_equal(first, draw((4,), seed, index))
    assert not np.array_equal(first, draw((4,), seed, index + 1))
    # Neither is image i of seed s image i + 1 of seed s - 1.
    assert not np.array_equal(first, draw((4,), (seed + 1) % LARGEST_SEED, index))


def test_latents_are_standard_normal() -> None:
    many = np.stack([draw((64,), 7, index) for index in range(500)])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02
    assert np.abs(np.corrcoef(many[:, :8].T) - np.eye(8)).max() < 0.2


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match="seed must be from 0"):
        check_seed(seed)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_mixing_keeps_the_variance_of_latents_and_the_mean_of_styles(parts: list[float]) -> None:
    weights = [part / sum(parts) for part in parts]
    drawn = [Code(draw((20000,), 0, n)) for n in range(len(weights))]
    assert abs(float(mix(drawn, weights).values.std()) - 1) < 0.03
    styles = [code([n, 1.0], "w", None) for n in range(len(weights))]
    expected = [sum(w * n for n, w in enumerate(weights)), 1.0]
    assert np.allclose(mix(styles, weights).values, expected, atol=1e-6)


def test_a_line_starts_and_ends_where_asked() -> None:
    start, end = Code(draw((5,), 0, 0)), Code(draw((5,), 0, 1))
    found = list(line(start, end, 5))
    assert [place for place, _ in found] == [0, 0.25, 0.5, 0.75, 1]
    assert np.allclose(found[0][1].values, start.values)
    assert np.allclose(found[-1][1].values, end.values)


@pytest.mark.parametrize("steps", [-3, 0, 1, 65, 10**9])
def test_too_few_or_too_many_steps_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="--steps"):
        list(line(code([0]), code([1]), steps))


def test_two_conditions_cannot_be_mixed() -> None:
    with pytest.raises(InputError, match="one condition"):
        list(line(code([0], condition=0), code([1], condition=1), 3))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_nine_vectors_stand_at_the_knots(steps: int) -> None:
    knots = [code([n], "w", None) for n in range(9)]
    found = {place: float(c.values[0]) for place, c in lattice(knots, steps)}
    assert len(found) == (2 * steps + 1) ** 2
    for n in range(9):
        assert found[(n // 3, n % 3)] == n
    if steps == 2:  # between four knots: their mean
        assert found[(0.5, 0.5)] == np.mean([0, 1, 3, 4])


@given(st.lists(st.tuples(st.sampled_from([1, -1]), NAMES), min_size=1, max_size=5))
def test_what_is_written_is_parsed(terms: list[tuple[int, str]]) -> None:
    text = " ".join(f"{'+' if sign > 0 else '-'} {name}" for sign, name in terms)
    assert parse_expression(text) == terms
    if terms[0][0] > 0:
        assert parse_expression(text.removeprefix("+")) == terms


@pytest.mark.parametrize("text", [
    "", "   ", "+", "a -", "a - - b", "a + - b", "a b", "a+b", "- + a", "a * b", "a - b)",
    "__import__('os')", "a:b:c", ":a", "a - 'b'",
])  # fmt: skip
def test_malformed_expressions_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_expression(text)


def test_sums_have_their_signs() -> None:
    means = {"a": np.float32([1, 0]), "b:x": np.float32([0, 2]), "c": np.float32([5, 5])}
    terms = parse_expression("a - b:x + c")
    assert evaluate(terms, means).tolist() == [6, 3]
    with pytest.raises(InputError, match="Did you mean 'b:x'"):
        check_terms(parse_expression("a - b:y"), means)
