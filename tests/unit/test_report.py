"""The overview picture and the report: complete, self-contained, and safe with any text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import detection, lesion_scan

from medgen.report import mosaic as mosaics
from medgen.report import pages, words
from medgen.report.figures import overview
from medgen.report.html import write_report
from medgen.report.mosaic import mosaic, mosaic_columns
from medgen.report.scene import build_scene

CASES: dict[str, Any] = {
    "volume": lambda: lesion_scan(count=3, restored=np.full((40, 48, 36), 400, np.float32)),
    "no findings": lambda: lesion_scan(count=0, p_value=0.6),
    "sixty findings": lambda: lesion_scan((80, 96, 72), count=60),
    "not calibrated": lambda: lesion_scan(p_value=None, threshold_meaning=""),
    "two dimensions": lambda: lesion_scan((64, 80), count=2),
    "picture": lambda: lesion_scan((64, 80), count=2, source="tile.png", format="png"),
    "colour": lambda: detection(
        np.random.default_rng(0).uniform(0, 255, (3, 40, 30)).astype(np.float32),
        np.pad(np.ones((4, 4)), ((10, 26), (10, 16))),
        np.diag([-1.0, -1, 1, 1]),
        format="png",
    ),
    "one slice": lambda: lesion_scan((40, 48, 1), count=0),
    "empty": lambda: detection(np.zeros((1, 8, 8, 8)), np.zeros((8, 8, 8))),
}


class Page(HTMLParser):
    """Elements, their attributes and the visible text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside = self.elements[-1][0] if self.elements else ""
        (self.scripts if inside == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def page(tmp_path: Path) -> Any:
    def render(case: Any) -> Page:
        return Page(write_report(case, tmp_path / "report.html").read_text("utf-8"))

    return render


@pytest.mark.parametrize("name", CASES)
def test_overview_is_a_picture_with_something_in_it(name: str, tmp_path: Path) -> None:
    path = overview(CASES[name](), tmp_path / "overview.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert 1000 < pixels.shape[1] < 1800
    assert 400 < pixels.shape[0] < 1400
    assert pixels.std() > 5


@pytest.mark.parametrize("name", CASES)
def test_report_is_complete_and_asks_nothing_of_the_network(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    source = write_report(case, tmp_path / "report.html").read_text("utf-8")
    page = Page(source)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for attribute in ("src", "href", "srcset", "data"):
            assert (attributes.get(attribute) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket", source)
    assert source.count(words.DISCLAIMER) == 1
    rows = [a for tag, a in page.elements if tag == "tr" and "data-finding" in a]
    assert len(rows) == len(case.findings)
    assert words.findings_sentence(len(case.findings)) in page.text
    assert case.model_sha256 in page.text
    data = viewer_data(page)
    assert len(data["findings"]) == len(case.findings)
    assert ("restored" in data["layers"]) == (case.restored is not None)


def viewer_data(page: Page) -> dict[str, Any]:
    data = json.loads(page.scripts[0])
    return data[0] if isinstance(data, list) else data


def test_the_score_is_explained_in_plain_words(page: Any) -> None:
    assert (
        "About 1 in 50 healthy reference scans scores this high or higher."
        in page(lesion_scan()).text
    )
    usual = page(lesion_scan(p_value=0.43)).text
    assert "About 43 in 100 healthy reference scans score this high or higher." in usual
    assert "does not rule out disease" in usual
    assert "not calibrated" in page(lesion_scan(p_value=None)).text


def test_hostile_text_stays_text(page: Any) -> None:
    attack = '</script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'
    case = lesion_scan(
        source=f"{attack.replace('/', '')}.nii.gz",
        notes=(attack,),
        threshold_meaning=attack,
        timings={attack: 1.0},
        device=attack,
    )
    shown = page(case)
    assert [tag for tag, _ in shown.elements].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert attack in shown.text
    assert pages.script_json({"a": "</script><!--"}).count("<") == 0


def test_no_folder_and_no_dicom_name_reaches_the_page(tmp_path: Path) -> None:
    for case in (
        lesion_scan(source="/home/DOE_JANE/scan.nii.gz"),
        lesion_scan(source="/archive/DOE_JANE", format="dicom"),
    ):
        source = write_report(case, tmp_path / "report.html").read_text("utf-8")
        assert "DOE_JANE" not in source
        assert "DOE_JANE" not in words.methods_paragraph(case)


def test_a_mosaic_holds_every_slice_where_the_viewer_looks() -> None:
    volume = np.random.default_rng(1).integers(0, 255, (5, 7, 11), dtype=np.uint8)
    picture, columns = mosaic(volume), mosaic_columns(11)
    for z in range(11):
        left, top = (z % columns) * 5, (z // columns) * 7
        np.testing.assert_array_equal(picture[top : top + 7, left : left + 5], volume[:, :, z].T)


def test_a_large_scan_is_reduced_without_losing_a_small_finding(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mosaics, "MAX_VOXELS", 4000)
    scores = np.zeros((40, 48, 36), dtype=np.float32)
    scores[17, 23, 11] = 0.9
    case = lesion_scan()
    small = detection(case.volume.voxels, scores, np.diag([1.0, 1, 2, 1]))
    data = viewer_data(page(small))
    assert np.prod(data["shape"]) <= 4000
    assert max(data["factors"]) > data["factors"][2]  # the coarse axis is reduced least
    at = np.array([*data["findings"][0]["at"], 1])
    world = np.array(data["affine"]) @ at
    reach = np.array(data["spacing"]) / 2 + 1e-6
    assert (np.abs(world[:3] - small.findings[0].centroid_mm) <= reach).all()
    mask = mosaics.block_peak(build_scene(small).mask, tuple(data["factors"]))
    assert mask[tuple(data["findings"][0]["at"])]


def test_a_full_size_scan_makes_a_small_file(tmp_path: Path) -> None:
    shape = (182, 218, 182)
    rng = np.random.default_rng(0)
    case = lesion_scan(shape, count=5)
    noise = rng.standard_normal((91, 109, 91)).astype(np.float32).repeat(2, 0).repeat(2, 1)
    scan = case.volume.voxels[0] + 15 * case.brain_mask * noise.repeat(2, 2)
    restored = np.where(case.brain_mask, scan, 0).astype(np.float32)
    full = detection(scan[None], case.map, restored=restored, brain_mask=case.brain_mask)
    path = write_report(full, tmp_path / "report.html")
    assert path.stat().st_size < 6e6


def test_torch_and_pyplot_stay_out(tmp_path: Path) -> None:
    program = (
        "import sys; from report_cases import lesion_scan\n"
        "from medgen.report.html import write_report; from medgen.report.figures import overview\n"
        "case = lesion_scan(); write_report(case, sys.argv[1])\n"
        "assert 'matplotlib' not in sys.modules; overview(case, sys.argv[2])\n"
        "heavy = {'torch', 'monai', 'matplotlib.pyplot', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    arguments = [str(tmp_path / "report.html"), str(tmp_path / "overview.png")]
    subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, cwd=Path(__file__).parent
    )


# ---- In a real browser ----


def browser(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in headless Chromium; skipped where there is none."""
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None
    )
    if program is None:
        pytest.skip("no Chromium on this machine; the report's viewer is not tested")
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--hide-scrollbars", "--enable-logging=stderr",
        "--virtual-time-budget=10000", f"--user-data-dir={page.parent / 'profile'}",
        *flags, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["volume", "no findings", "colour"])
def test_the_viewer_starts_without_a_complaint(name: str, tmp_path: Path) -> None:
    page = write_report(CASES[name](), tmp_path / "report.html")
    done = browser(page, "--dump-dom")
    assert 'data-viewer="ready"' in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_viewer_draws_a_lesion_on_the_patients_side(tmp_path: Path) -> None:
    shape = (40, 48, 36)
    scan = np.full(shape, 300, dtype=np.float32)
    scores = np.zeros(shape, dtype=np.float32)
    scores[28:34, 6:12, 20:26] = 1  # stored left to right reversed: a high index is left
    affine = np.diag([-1.0, 1, 1, 1])
    page = write_report(detection(scan[None], scores, affine), tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    browser(page, f"--screenshot={shot}", "--window-size=1500,1000")
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    hot = (red > 120) & (green > 120) & (blue < green - 40)  # the scale's bright end
    axial = hot[200:520, 30:440]
    assert axial.sum() > 100
    rows, columns = np.nonzero(axial)
    assert columns.mean() > 205 + 20  # patient's left: on the right
    assert rows.mean() > 160 + 20  # low y is the back: at the bottom


def test_a_name_that_the_font_cannot_draw_is_drawn_as_squares(tmp_path: Path) -> None:
    scan = lesion_scan(count=0, source="\x1b[31m\N{CJK UNIFIED IDEOGRAPH-5934}.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert overview(scan, tmp_path / "o.png").is_file()
