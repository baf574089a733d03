"""Two models on one scan: how far they agree, and one report that shows both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_cases import lesion_scan
from scipy import stats
from test_report import Page, browser
from tiny_packages import phantom, save_intensity, save_restore

from medgen.errors import InputError
from medgen.report.figures import overview
from medgen.report.pair import write_pair
from medgen.scoring import Explanation
from medgen.tasks.detect import Detection
from medgen.tasks.detect_compare import Compared, agreement, compare_models

NAMES = ("brain-a", "brain-b")


def because(found: Detection) -> tuple[Explanation, ...]:
    return tuple(
        Explanation(one.label, "probability", 0.9, 0.75, 123.0, 0.98) for one in found.findings
    )


def pair() -> tuple[Detection, Detection]:
    """Two models: the second sees fewer lesions, restores nothing, and looked elsewhere."""
    restored = np.full((40, 48, 36), 400, np.float32)
    first = lesion_scan(count=3, restored=restored, evidence="the probability")
    brain = first.brain_mask.copy()
    brain[:20] = False
    scores = np.where(brain, first.map, 0)
    mask = scores >= 0.5
    kept = [one for one in first.findings if mask[tuple(map(round, one.centroid_voxel))]]
    second = lesion_scan(count=3, map=scores, mask=mask, findings=kept, brain_mask=brain)
    return first, second


def test_agreement_is_what_scipy_says() -> None:
    first, second = pair()
    found = agreement(first, second)
    both = first.brain_mask & second.brain_mask
    expected = stats.spearmanr(first.map[both], second.map[both]).statistic
    assert found["rank_correlation"] == pytest.approx(expected)
    overlap = (first.mask & second.mask).sum()
    assert found["dice"] == pytest.approx(2 * overlap / (first.mask.sum() + second.mask.sum()))
    assert (found["first_findings"], found["first_in_second"]) == (3, len(second.findings))
    assert 0 < found["second_in_first"] == found["second_findings"] < 3
    same = agreement(first, first)
    assert same["rank_correlation"] == pytest.approx(1)
    assert same["dice"] == 1
    nothing = agreement(lesion_scan(count=0), lesion_scan(count=0))
    assert nothing["dice"] is None
    assert nothing["rank_correlation"] is None  # both maps are 0 everywhere


def test_the_page_holds_both_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    first, second = pair()
    path = write_pair((first, second), NAMES, agreement(first, second), tmp_path / "pair.html")
    source = path.read_text("utf-8")
    page = Page(source)
    assert "http://" not in source
    assert "https://" not in source
    for words in (*NAMES, "Rank correlation", "Overlap of their findings", "the probability"):
        assert words in page.text
    data = json.loads(page.scripts[0])
    assert data[0]["shape"] == data[1]["shape"]
    assert data[0]["window"] == data[1]["window"]
    assert "restored" in data[0]["layers"]
    assert set(data[1]["layers"]) == {"map", "mask"}
    rows = [a["data-finding"] for tag, a in page.elements if tag == "tr" and "data-finding" in a]
    assert rows == [str(n) for n in range(len(first.findings) + len(second.findings))]


@pytest.mark.parametrize("flat", [False, True])
def test_the_page_starts_without_a_complaint(tmp_path: Path, flat: bool) -> None:
    one, two = pair()
    if flat:
        one, two = (lesion_scan((64, 80), count=n, format="png") for n in (0, 2))
    page = write_pair((one, two), NAMES, agreement(one, two), tmp_path / "pair.html")
    done = browser(page, "--dump-dom")
    assert 'data-viewer="ready"' in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_report_says_why_and_the_overview_shows_what_was_expected(tmp_path: Path) -> None:
    from medgen.report.html import write_report

    plain = lesion_scan(count=2)
    why = lesion_scan(
        count=2, restored=np.full((40, 48, 36), 400, np.float32), explanations=because(plain),
        evidence="the probability of an anomaly",
    )  # fmt: skip
    text = Page(write_report(why, tmp_path / "report.html").read_text("utf-8")).text
    assert "probability (75 %) and intensity prior (25 %)" in text
    assert "brighter than restored by 123" in text
    assert "The map is the probability of an anomaly." in text
    widths = []
    for case in (plain, why):
        with Image.open(overview(case, tmp_path / "overview.png")) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        widths.append(pixels.shape[1])
        # The lesion is brighter than restored: orange, which nothing else in the columns is.
        red, green, blue = np.moveaxis(pixels[:, :-420], -1, 0)
        orange = (red > 200) & (abs(green - 140) < 60) & (blue < 90)
        assert orange[112:].sum() > 20 if case is why else True
    assert widths[1] > widths[0]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compared, Path]:
    shelf = tmp_path_factory.mktemp("shelf")
    baseline = save_intensity(
        shelf / "tiny-baseline", scoring={"evidence": "score", "intensity_prior": 0.5}
    )
    restore = save_restore(shelf / "tiny-restore", default_threshold=0.4)
    found = compare_models(phantom().image, (baseline, restore))
    folder = shelf / "out"
    found.save(folder)
    return found, folder


def test_each_model_keeps_its_own_outputs(compared: tuple[Compared, Path]) -> None:
    found, folder = compared
    assert {path.name for path in folder.iterdir()} == {
        "compare.html", "compare.json", "tiny-baseline", "tiny-restore",
    }  # fmt: skip
    for name in found.names:
        assert (folder / name / "report.html").is_file()
        summary = json.loads((folder / name / "findings.json").read_text())
        both = json.loads((folder / "compare.json").read_text())
        assert both["models"][name] == summary
    baseline = json.loads((folder / "tiny-baseline" / "findings.json").read_text())
    assert baseline["map"].startswith("the method's own score, times a prior for bright voxels")
    assert all(one["why"]["evidence"] == "score" for one in baseline["findings"])
    header = (folder / "tiny-baseline" / "findings.tsv").read_text().splitlines()[0].split("\t")
    assert header[-5:] == [
        "evidence", "evidence_mean", "evidence_share", "difference", "brightness",
    ]  # fmt: skip


def test_the_same_model_twice_is_refused(compared: tuple[Compared, Path]) -> None:
    folder = compared[1].parent / "tiny-restore"
    with pytest.raises(InputError, match="both models are tiny-restore"):
        compare_models(phantom().image, (folder, folder))
