"""Train on synthetic, test on real: the patient is the unit, and leakage is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from medgen.errors import InputError, LeakageError
from medgen.metrics import dice
from medgen.tasks import segmentation
from medgen.tasks.evaluate_synthesis import ImageSet
from medgen.tasks.segmentation import segmentation_dice


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(segmentation, "FEATURES", (8, 8, 8, 8, 8, 8))


def discs(count: int, seed: int, *, dims: int = 2, lie: bool = False) -> ImageSet:
    """Bright balls on a dark ground, labelled; or, as a lie, the ground labelled instead."""
    random = np.random.default_rng(seed)
    axes = np.indices((16,) * dims)
    labels = np.zeros((count, 1, *[16] * dims), np.int64)
    for number in range(count):
        centre = random.uniform(5, 11, dims).reshape(-1, *[1] * dims)
        labels[number, 0] = np.square(axes - centre).sum(0) < random.uniform(9, 20)
    images = 1.4 * labels - 0.7 + 0.1 * random.normal(size=labels.shape)
    truth = 1 - labels if lie else labels
    groups = [f"s{seed}p{number // 3}" for number in range(count)]
    return ImageSet(images.clip(-1, 1).astype(np.float32), labels=truth, groups=groups)


def test_honest_labels_beat_lies_patient_by_patient():
    sets = {"real": discs(20, 0), "lie": discs(20, 1, lie=True)}
    sets["both"] = (sets["real"], discs(40, 2))
    test = discs(18, 9)
    found = segmentation_dice(sets, test, label_count=2, steps=60, seeds=(0,))
    dices = {name: row["mean"] for name, row in found["dice"].items()}
    assert dices["real"] > 0.75 and dices["both"] > 0.75 and dices["lie"] < 0.4
    assert found["patients"] == sorted(set(test.groups)) and len(found["patients"]) == 6
    row = found["dice"]["real"]
    assert row["mean"] == pytest.approx(np.mean(list(row["per_patient"].values())))
    assert row["interval"][0] <= row["mean"] <= row["interval"][1]
    assert found["dice"]["both"]["n"] == 60
    first = found["tests"][0]
    assert (first["first"], first["second"]) == ("real", "lie")
    per = [found["dice"][name]["per_patient"] for name in ("real", "lie")]
    difference = [per[0][p] - per[1][p] for p in found["patients"]]
    assert first["difference"] == pytest.approx(np.mean(difference))
    assert first["p_value"] == pytest.approx(wilcoxon(difference).pvalue)
    assert first["p_value"] == pytest.approx(first["smallest_p_value"])


def test_the_same_seed_trains_the_same_network_and_leaves_the_random_state():
    sets, test = {"real": discs(12, 0, dims=3)}, discs(6, 9, dims=3)
    before = torch.get_rng_state()
    one, two = (segmentation_dice(sets, test, label_count=2, steps=3, seeds=(5,)) for _ in "ab")
    assert one == two
    assert torch.equal(before, torch.get_rng_state())


def test_a_patients_dice_is_that_of_all_its_images_together():
    random = np.random.default_rng(0)
    found, truth = random.integers(0, 3, (2, 6, 8, 8))
    mine = np.array([True, True, False, False, True, False])
    expected = [dice(found[mine] == n, truth[mine] == n) for n in (1, 2)]
    assert segmentation._patient_dice(found, truth, mine, 3) == expected
    pixels = 2 * (found[mine] == 1)[truth[mine] == 1].sum()
    assert expected[0] == pytest.approx(
        pixels / ((found[mine] == 1).sum() + (truth[mine] == 1).sum())
    )


def test_augmentation_moves_image_and_labels_together():
    part = discs(32, 0)
    torch.manual_seed(0)
    image, labels = segmentation.moved(torch.from_numpy(part.images), torch.from_numpy(part.labels))
    assert set(labels.unique().tolist()) == {0, 1}
    assert float((labels != torch.from_numpy(part.labels)).float().mean()) > 0.02
    # Linear in one and nearest in the other, so they may differ along edges only.
    assert float(((image > 0) == (labels == 1)).float().mean()) > 0.97


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"groups": ["s0p0"] * 18}, InputError, "at least two"),
        ({"groups": ["s0p0", "x"] * 9}, LeakageError, "s0p0"),
        ({"labels": None}, InputError, "no images with label maps"),
        ({"labels": 5}, InputError, "0 to 1, got 0 to 5"),
    ],
)
def test_wrong_sets_are_refused(change, error, message):
    test = discs(18, 9)
    values = {"labels": test.labels, "groups": test.groups} | change
    if change.get("labels") == 5:
        values["labels"] = test.labels * 5
    wrong = ImageSet(test.images, **values)
    with pytest.raises(error, match=message):
        segmentation_dice({"real": discs(12, 0)}, wrong, label_count=2, steps=1)


def test_slices_of_synthetic_volumes_are_of_no_test_patient():
    """However patients are called: by bare numbers, for example."""
    fake, real = discs(4, 0, dims=3), discs(4, 1, dims=3)
    fake = ImageSet(fake.images, labels=fake.labels).slices()
    test = ImageSet(real.images, labels=real.labels, groups=["0", "1", "2", "3"]).slices()
    found = segmentation_dice({"synthetic": fake}, test, label_count=2, steps=4, seeds=(0,))
    assert found["patients"] == ["0", "1", "2", "3"]
