"""Rules: what they accept, what they refuse, and how they rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medgen.batch.rules import FIELDS, Rule, first_broken, preference, reasons_for

TEXTS = st.text(max_size=12)
VALUES = st.one_of(TEXTS, st.integers(-100, 100), st.lists(TEXTS, min_size=1, max_size=3))


def rule(**condition: object) -> Rule:
    return Rule.model_validate({"field": "text", "reason": "because", **condition})


@given(value=VALUES, wanted=st.lists(TEXTS, min_size=1, max_size=3))
def test_any_of_and_none_of_are_opposites_of_what_is_known(value, wanted) -> None:
    facts = {"text": value}
    known = value not in ("", [])
    if known:
        assert rule(any_of=wanted).holds(facts) != rule(none_of=wanted).holds(facts)
    else:
        assert rule(any_of=wanted).holds(facts) and rule(none_of=wanted).holds(facts)


@given(value=st.floats(-1e6, 1e6), bound=st.floats(-1e6, 1e6))
def test_bounds_meet_only_at_the_bound(value, bound) -> None:
    facts = {"slices": value}
    least = rule(field="slices", at_least=bound).holds(facts)
    most = rule(field="slices", at_most=bound).holds(facts)
    assert least or most
    assert (least and most) == (value == bound)


@pytest.mark.parametrize("unknown", ["accept", "reject"])
@pytest.mark.parametrize(
    "condition",
    [{"any_of": ["a"]}, {"none_of": ["a"]}, {"matches": "a"}, {"not_matches": "a"},
     {"at_least": 1}, {"at_most": 1}],
)  # fmt: skip
def test_what_is_not_stated_is_unknown(condition, unknown) -> None:
    for facts in ({}, {"text": None}, {"text": ""}, {"text": []}):
        assert rule(**condition, unknown=unknown).holds(facts) == (unknown == "accept")


def test_words_are_found_in_any_case_and_in_any_element() -> None:
    assert rule(matches="flair").holds({"text": "T2_FLAIR"})
    assert rule(field="image_type", any_of=["adc"]).holds({"image_type": ["DERIVED", "ADC"]})
    assert not rule(not_matches="adc").holds({"text": ["x", "the ADC map"]})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"field": "modaltiy", "any_of": ["MR"]}, "did you mean 'modality'"),
        ({"field": "modality"}, "exactly one"),
        ({"field": "modality", "any_of": ["MR"], "matches": "x"}, "exactly one"),
        ({"field": "text", "matches": "("}, "not a regular expression"),
        ({"field": "text", "matches": "a", "raeson": "x"}, "Extra inputs"),
    ],
)
def test_mistakes_are_named(values, words) -> None:
    with pytest.raises(ValidationError, match=words):
        Rule.model_validate({"reason": "because", **values})


def test_preference_is_lexicographic_and_explains_itself() -> None:
    prefer = [rule(matches="flair", reason="FLAIR"), rule(matches="t2", reason="T2")]
    texts = ["t1", "t2 tse", "flair", "t2 flair", ""]
    ranked = sorted(texts, key=lambda text: preference(prefer, {"text": text}))
    assert ranked == ["t2 flair", "flair", "t2 tse", "t1", ""]
    assert reasons_for(prefer, {"text": "t2 flair"}) == ["FLAIR", "T2"]
    assert reasons_for(prefer, {}) == []  # unknown is no reason


def test_the_first_broken_rule_is_the_reason() -> None:
    rules = [rule(any_of=["MR"], field="modality"), rule(field="dims", any_of=[3], reason="flat")]
    assert first_broken(rules, {"modality": "MR", "dims": 2}) is rules[1]
    assert first_broken(rules, {"modality": "MR", "dims": 3}) is None


def test_every_field_is_described() -> None:
    assert all(FIELDS.values())
