"""The evaluation as a whole: good, noisy, collapsed and copied sets get the numbers they earn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medgen.errors import InputError, LeakageError
from medgen.features import FeatureExtractor
from medgen.tasks.classifier import class_accuracy, folds_of, logistic_regression
from medgen.tasks.evaluate_synthesis import (
    ImageSet,
    compare,
    measure,
    refuse_other_extractor,
    symmetric,
)

SIDE = 32
QUICK = {"repeats": 3, "classifier_steps": 0, "diversity_pairs": 20}


class Quarters(nn.Module):
    """Mean of each quarter of the picture and its contrast: eight numbers."""

    def forward(self, image):
        grey = image[:, :1]
        mean = nn.functional.adaptive_avg_pool2d(grey, 2)
        square = nn.functional.adaptive_avg_pool2d(grey**2, 2)
        return torch.cat([mean, (square - mean**2).clamp(min=0).sqrt()], 1).flatten(1)


EXTRACTOR = FeatureExtractor("quarters", "a" * 64, 8, SIDE, Quarters())


def pictures(count: int, seed: int, *, noise: float = 0.1, conditions: bool = True) -> ImageSet:
    """Bars that lie (condition 0) or stand (1), at random places, with noise; patients of two."""
    random = np.random.default_rng(seed)
    condition = np.arange(count) % 2
    images = -0.5 + noise * random.normal(size=(count, 1, SIDE, SIDE))
    for number in range(count):
        start, size = random.integers(2, 22), random.integers(4, 9)
        bar = (slice(start, start + size), slice(None))
        images[number, 0][bar if condition[number] == 0 else bar[::-1]] += 0.9
    return ImageSet(
        images.clip(-1, 1).astype(np.float32),
        condition if conditions else None,
        groups=[f"s{seed}p{number // 2}" for number in range(count)],
    )


def test_images_of_the_same_kind_are_near_the_floor_and_noisy_ones_are_not():
    real, good, noisy = pictures(80, 0), pictures(60, 1), pictures(60, 2, noise=0.35)
    train = pictures(70, 3)
    ours = measure(real, good, train, EXTRACTOR, **QUICK)["metrics"]
    theirs = measure(real, noisy, train, EXTRACTOR, **QUICK)["metrics"]
    for name in ("fid", "kid"):
        assert theirs[name]["value"] > 3 * ours[name]["value"]
        assert theirs[name]["at_floor"] > 3 * theirs[name]["floor"]
        assert ours[name]["at_floor"] < 2 * ours[name]["floor"] + 0.02
    assert ours["kid"]["interval"][0] <= ours["kid"]["value"] <= ours["kid"]["interval"][1]
    assert theirs["kid"]["interval"][0] > ours["kid"]["interval"][1]
    assert theirs["density"]["value"] < 0.7 * ours["density"]["value"]
    assert ours["fid"]["n"] == [80, 60] and ours["fid"]["floor_n"] == 40
    assert ours["fid"]["training"] == pytest.approx(ours["fid"]["value"], rel=2)


def test_copies_are_caught_and_collapse_shows_in_diversity():
    real, train = pictures(80, 0), pictures(70, 3)
    copies = ImageSet((train.images[:40] * 0.999).astype(np.float32), train.condition[:40])
    same = ImageSet(np.repeat(train.images[:2], 20, axis=0), np.repeat([0, 1], 20))
    honest = measure(real, pictures(60, 1), train, EXTRACTOR, **QUICK)
    copied = measure(real, copies, train, EXTRACTOR, **QUICK)
    collapsed = measure(real, same, train, EXTRACTOR, **QUICK)["metrics"]
    assert honest["metrics"]["copy_rate"]["value"] < 0.2
    assert copied["metrics"]["copy_rate"]["value"] > 0.9
    assert copied["metrics"]["copy_rate"]["floor"] <= 0.05
    assert copied["nearest_training"]["index"] == list(range(40))
    assert collapsed["recall"]["value"] < 0.2
    assert collapsed["ms_ssim"]["value"] > 0.99 > honest["metrics"]["ms_ssim"]["value"]
    assert collapsed["ms_ssim"]["floor"] == honest["metrics"]["ms_ssim"]["floor"]


def test_the_same_seed_gives_the_same_numbers_and_conditions_their_own():
    real, fake = pictures(80, 0), pictures(50, 1)
    one = measure(real, fake, None, EXTRACTOR, condition_names=["lying", "standing"], **QUICK)
    two = measure(real, fake, None, EXTRACTOR, condition_names=["lying", "standing"], **QUICK)
    assert one == two
    assert set(one["by_condition"]) == {"lying", "standing"}
    assert one["by_condition"]["lying"]["fid"]["n"] == [40, 25]
    assert "copy_rate" not in one["metrics"]
    small = measure(real, pictures(30, 1), None, EXTRACTOR, **QUICK)["by_condition"]
    assert "at least 20" in small["0"]["left_out"]


def test_class_accuracy_follows_the_conditions_asked_for():
    real, fake = pictures(80, 0), pictures(40, 1)
    swapped = ImageSet(fake.images, 1 - fake.condition)
    features = {"real": EXTRACTOR(real.images), "fake": EXTRACTOR(fake.images)}
    right = class_accuracy(real, fake, features, steps=20)
    wrong = class_accuracy(real, swapped, features, steps=20)
    for name in ("class_accuracy", "class_accuracy_features"):
        assert right[name]["value"] + wrong[name]["value"] == pytest.approx(1)
        assert right[name]["floor"] == wrong[name]["floor"]
    assert right["class_accuracy"]["value"] > 0.9 and right["class_accuracy"]["floor"] > 0.9
    low, high = right["class_accuracy"]["interval"]
    assert low <= right["class_accuracy"]["value"] <= high


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, 90)
    features = random.normal(size=(90, 5)) + kinds[:, None] * [1, 0, 0.5, 0, -1]
    ours = logistic_regression(features[:60], kinds[:60])
    scale = StandardScaler().fit(features[:60])
    theirs = LogisticRegression(C=1.0, tol=1e-8).fit(scale.transform(features[:60]), kinds[:60])
    assert (ours(features) == theirs.predict(scale.transform(features))).all()


def test_folds_keep_patients_together_and_have_every_condition():
    condition = np.array([0] * 30 + [1] * 12)
    groups = [str(n // 3) for n in range(42)]
    folds = folds_of(condition, groups, 0)
    names = np.asarray(groups)
    assert len(folds) == 4
    assert sorted(np.concatenate(folds)) == list(range(42))
    for number, fold in enumerate(folds):
        others = np.concatenate([f for n, f in enumerate(folds) if n != number])
        assert not set(names[fold]) & set(names[others])
        assert set(condition[fold]) == {0, 1}
    assert len(folds_of(np.array([0, 0, 0, 1, 1]), None, 0)) == 2
    with pytest.raises(InputError, match="at least two conditions"):
        folds_of(np.zeros(8, int), None, 0)
    with pytest.raises(InputError, match="condition number 1 has 1 held-out groups"):
        folds_of(np.array([0, 0, 0, 1]), None, 0)


def test_a_mirrored_or_turned_copy_is_a_copy():
    real, train = pictures(80, 0), pictures(70, 3)
    turned = np.concatenate([train.images[:20, :, ::-1], train.images[20:40].swapaxes(2, 3)])
    found = measure(real, ImageSet(turned), train, EXTRACTOR, **QUICK)
    assert found["metrics"]["copy_rate"]["value"] > 0.9
    assert found["nearest_training"]["index"] == list(range(40))
    assert len(symmetric(train.images)) == 7 and len(symmetric(train.images[..., :16])) == 3
    assert len(symmetric(np.zeros((2, 1, 8, 8, 8)))) == 1


def test_a_held_out_image_or_patient_among_the_training_images_is_leakage():
    real, fake, train = pictures(40, 0), pictures(40, 1), pictures(40, 3)
    mixed = np.concatenate([train.images, real.images[7:8]])
    with pytest.raises(LeakageError, match="1 of 40 held-out"):
        measure(real, fake, ImageSet(mixed), EXTRACTOR, **QUICK)
    again = ImageSet(train.images, groups=["s0p3", *train.groups[1:]])
    with pytest.raises(LeakageError, match="s0p3"):
        measure(real, fake, again, EXTRACTOR, **QUICK)


def test_empty_slices_of_two_patients_are_no_leakage():
    real, fake, train = pictures(40, 0), pictures(40, 1), pictures(40, 3)
    real.images[5], train.images[9] = -1, -1
    found = measure(real, fake, ImageSet(train.images), EXTRACTOR, **QUICK)
    assert "copy_rate" in found["metrics"]


def test_leakage_does_not_depend_on_how_exact_features_are():
    """Features of one image differ in the last bits with the batch that it is in."""

    class Rough(nn.Module):
        def forward(self, image):
            return Quarters()(image) + 1e-5 * torch.rand(len(image), 1)

    rough = FeatureExtractor("rough", "b" * 64, 8, SIDE, Rough())
    real, train = pictures(40, 0), pictures(40, 3)
    mixed = ImageSet(np.concatenate([train.images, real.images[7:8]]))
    with pytest.raises(LeakageError, match=r"1 of 40 held-out .* first is number 7"):
        measure(real, pictures(40, 1), mixed, rough, **QUICK)


def test_sets_that_cannot_be_compared_are_refused():
    real, fake = pictures(40, 0), pictures(40, 1)
    with pytest.raises(InputError, match="at least 20 are needed, got 19"):
        measure(real, fake.take(np.arange(19)), None, EXTRACTOR)
    with pytest.raises(InputError, match=r"-1\.\.1"):
        measure(real, ImageSet(fake.images * 200), None, EXTRACTOR)
    with pytest.raises(InputError, match=r"\(1, 32, 16\)"):
        measure(real, ImageSet(fake.images[..., :16]), None, EXTRACTOR)
    with pytest.raises(InputError, match="40 images, but 39 groups"):
        ImageSet(real.images, groups=["a"] * 39)
    with pytest.raises(InputError, match="do not match"):
        ImageSet(real.images, labels=np.zeros((40, 1, 16, 16), int))
    with pytest.raises(InputError, match="at least 20"):
        compare(np.zeros((5, 3)), np.zeros((30, 3)))


def test_numbers_of_different_extractors_are_not_compared():
    real, fake = pictures(40, 0), pictures(40, 1)
    other = FeatureExtractor("other", "b" * 64, 8, SIDE, Quarters())
    one, two = (measure(real, fake, None, e, **QUICK) for e in (EXTRACTOR, other))
    refuse_other_extractor([("one", one), ("again", one)])
    with pytest.raises(InputError) as caught:
        refuse_other_extractor([("one", one), ("two", two)])
    assert "a" * 64 in caught.value.message and "b" * 64 in caught.value.message
    with pytest.raises(InputError, match="image size"):
        refuse_other_extractor([("one", one), ("two", {**one, "size": [1, 16, 16]})])


def test_volumes_become_slices_of_their_patient():
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (3, 1, 8, 9, 4)).astype(np.float32)
    labels = random.integers(0, 3, (3, 1, 8, 9, 4))
    cut = ImageSet(images, np.array([0, 1, 1]), labels, ["a", "b", "c"]).slices()
    assert cut.images.shape == (12, 1, 8, 9)
    assert (cut.images[5] == images[1, ..., 1]).all() and (cut.labels[5] == labels[1, ..., 1]).all()
    assert cut.groups[4:8] == ["b"] * 4 and cut.condition.tolist() == [0] * 4 + [1] * 8


def test_the_ceiling_is_measured_on_images_that_the_classifier_did_not_see():
    """Conditions that have nothing to do with the images are learned by heart, but not guessed."""
    random = np.random.default_rng(0)
    real, fake = pictures(80, 0), pictures(20, 1)
    real = ImageSet(real.images, random.permutation(np.arange(80) % 2))
    features = {"real": random.normal(size=(80, 60)), "fake": random.normal(size=(20, 60))}
    found = class_accuracy(real, fake, features, steps=1)["class_accuracy_features"]
    assert found["floor"] < 0.7
