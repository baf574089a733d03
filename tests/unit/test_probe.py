"""Probes: which images have labels, what is measured, and that nothing leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining_cases import bars, trained
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medgen.errors import InputError, LeakageError
from medgen.grouped_files import Item
from medgen.methods import build
from medgen.tasks import probe as module
from medgen.tasks.classifier import logistic_regression
from medgen.tasks.probe import Options, labelled_shares, probe
from medgen.tasks.representation import Representation, fresh, vectors_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return bars(tmp_path_factory.mktemp("bars") / "images")


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "mae", images, "mae")


@pytest.fixture(scope="module")
def result(images, run):
    wish = Options((0.1, 1.0), seeds=2, fine_tune=True, fine_tune_steps=3)
    return probe([str(run)], images, {}, wish)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=6, max_size=40),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_labelled_groups_are_whole_nested_and_of_every_label(pairs, seeds):
    items = [Item(Path(f"{n}.png"), label, str(group)) for n, (group, label) in enumerate(pairs)]
    shares = labelled_shares(items, (0.01, 0.3, 1.0), seeds)
    for seed in range(seeds):
        few, some, all_of_them = (set(shares[seed, part].tolist()) for part in (0.01, 0.3, 1.0))
        assert few <= some <= all_of_them == set(range(len(items)))
        for chosen in (few, some):
            groups = {items[n].group for n in chosen}
            assert {n for n, item in enumerate(items) if item.group in groups} == chosen
            assert {items[n].condition for n in chosen} == {item.condition for item in items}


def test_auroc_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    truth, scores = random.integers(0, 3, 50), random.standard_normal((50, 3))
    one = [roc_auc_score(truth == kind, scores[:, kind]) for kind in range(3)]
    assert module._auroc(scores, truth) == pytest.approx(np.mean(one))
    two = truth % 2
    expected = roc_auc_score(two, scores[:, 1] - scores[:, 0])
    assert module._auroc(scores[:, :2], two) == pytest.approx(expected)


def test_resampling_is_that_of_repeated_images():
    random = np.random.default_rng(0)
    for labels in (2, 3):
        truth = np.repeat(np.arange(labels), 8)
        scores = random.integers(0, 6, (len(truth), labels)).astype(float)
        weights = random.integers(0, 3, (4, len(truth)))
        weights[:, ::8] += 1
        found = module.resampled_auroc(scores, truth, weights)
        for row, value in zip(weights, found, strict=True):
            index = np.repeat(np.arange(len(truth)), row)
            assert value == pytest.approx(module._auroc(scores[index], truth[index]))


def test_groups_are_drawn_whole_and_every_label_stays():
    items = [Item(Path(f"{n}.png"), n % 3 % 2, str(n // 2)) for n in range(20)]
    weights = module.resampled_groups(items)
    assert (weights[:, ::2] == weights[:, 1::2]).all()
    labels = np.array([item.condition for item in items])
    assert all((weights[:, labels == kind].sum(1) > 0).all() for kind in (0, 1))
    assert weights.mean() == pytest.approx(1, abs=0.05)


def test_the_linear_probe_is_scikit_learns_logistic_regression():
    """For two labels theirs has one weight vector, ours two, so ours counts as twice their C."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((60, 4)), random.integers(0, 2, 60)
    ours = logistic_regression(x, y, standardise=False).scores(x)
    theirs = LogisticRegression(C=2.0, tol=1e-8, max_iter=1000).fit(x, y)
    assert np.allclose(ours[:, 1] - ours[:, 0], theirs.decision_function(x), atol=1e-3)


def test_standardising_keeps_constant_features_silent():
    train = torch.cat([torch.randn(9, 2), torch.ones(9, 1)], 1).double()
    test = torch.full((2, 3), 5.0).double()
    ours, other = module._standardised(train, test)
    assert np.isfinite(ours).all()
    assert (other[:, 2] == 0).all()


@pytest.mark.parametrize("method", ["mae", "vae", "dae", "selfsup"])
def test_every_way_to_pretrain_gives_features_of_images(method):
    small = {
        "mae": {"features": (8, 8)}, "vae": {"spatial_dims": 2, "features": (8, 8)},
        "dae": {"spatial_dims": 2, "features": (8,) * 5},
        "selfsup": {"view_size": 32, "widths": (8,) * 4, "dimension": 8, "projector": 8},
    }[method]  # fmt: skip
    torch.manual_seed(0)
    pool = torch.rand(6, 1, 32, 32)
    network = Representation(build(method, small))
    found = vectors_of(network, pool)
    assert found.shape == (6, 8)
    assert torch.isfinite(found).all()
    again = vectors_of(network, pool[2:3])
    assert torch.allclose(found[2:3], again, atol=1e-6), "features depend on the batch"
    one, other = fresh(method, small, pool, 0), fresh(method, small, pool, 1)
    assert torch.equal(vectors_of(one, pool), vectors_of(fresh(method, small, pool, 0), pool))
    assert not torch.allclose(vectors_of(one, pool), vectors_of(other, pool))


def test_a_method_without_an_encoder_is_refused():
    with pytest.raises(InputError, match="no encoder"):
        Representation(build("intensity", {}))


def test_all_that_was_asked_for_is_in_the_result(result):
    rows = {(r["start"], r["use"], r["fraction"], r["seed"]) for r in result["rows"]}
    for part in (0.1, 1.0):
        for seed in (0, 1):
            assert ("pixels", "linear", part, seed) in rows
            for use in ("linear", "fine-tuned"):
                assert ("pre-trained", use, part, seed) in rows
                assert ("random", use, part, seed) in rows
    assert len(rows) == len(result["rows"]) == 20
    assert all(0 <= row["auroc"] <= 1 for row in result["rows"])
    for curve in result["curves"]:
        assert curve["lowest"] <= curve["auroc"] <= curve["highest"]
        assert 0 <= curve["interval"][0] <= curve["interval"][1] <= 1
    verdicts = {row["verdict"] for row in result["differences"]}
    assert verdicts <= {"better", "worse", "no difference seen"}
    assert len(result["differences"]) == 4


def test_bars_are_told_apart_by_pixels(result):
    """The test bench itself can see what is easy."""
    best = next(c for c in result["curves"] if c["start"] == "pixels" and c["fraction"] == 1.0)
    assert best["auroc"] > 0.9


def test_probing_again_gives_the_same(images, run, result):
    wish = Options((0.1, 1.0), seeds=2, fine_tune=True, fine_tune_steps=3)
    assert probe([str(run)], images, {}, wish) == result


def test_the_network_itself_is_not_changed_by_fine_tuning(images, run):
    from medgen.tasks.trained import open_trained

    before = open_trained(run).method.state_dict()
    opened = open_trained(run)
    from medgen.tasks.labelled_images import read_labelled

    train, test, _ = module.found_images(module.split_settings(images, {}, opened))
    pool, held_out = read_labelled(train, opened), read_labelled(test, opened)
    network = Representation(opened.method)
    module._tuned(network, pool, held_out, np.arange(len(train)), 0, Options(fine_tune_steps=2))
    assert all(torch.equal(before[name], value) for name, value in
               opened.method.state_dict().items())  # fmt: skip


def test_held_out_patients_that_were_trained_on_are_refused(images, run):
    with pytest.raises(LeakageError, match="trained on by mae"):
        probe([str(run)], images, {"validation_fraction": 0.6}, Options())


def test_images_without_labels_are_refused(images, run, tmp_path):
    with pytest.raises(InputError, match="tells labels apart"):
        probe([str(run)], images / "lying", {"validation_fraction": 0.25}, Options())


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (1.5,)])
def test_fractions_must_be_parts(fractions):
    with pytest.raises(InputError, match="fractions"):
        Options(fractions)
