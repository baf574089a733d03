"""Before and after: the page and the picture are complete, honest, small, and run from a disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_cases import restoration
from PIL import Image
from test_report import Page, browser, viewer_data

from medgen.report import mosaic, words
from medgen.report.comparison import _same_bytes, comparison_overview, write_comparison
from medgen.report.comparison_scene import RestorationLike, build_comparison
from medgen.tasks.restoration import Restoration

CASES: dict[str, Any] = {
    "denoise": restoration,
    "inpaint": lambda: restoration("inpaint"),
    "super-resolve": lambda: restoration("super-resolve"),
    "translate": lambda: restoration("translate", level=None),
    "classical": lambda: restoration(uncertainty=None, level=None, model_sha256="", measures={}),
    "slice": lambda: restoration("inpaint", (40, 48), np.diag([-1.0, -1, 1, 1])),
    "picture": lambda: restoration("inpaint", (40, 48), source="tile.png", format="png"),
    "empty": lambda: restoration(output=np.zeros((8, 8, 8)), shape=(8, 8, 8)),
}


@pytest.fixture
def page(tmp_path: Path) -> Any:
    def render(case: Any) -> Page:
        return Page(write_comparison(case, tmp_path / "report.html").read_text("utf-8"))

    return render


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_complete_and_asks_nothing_of_the_network(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    source = write_comparison(case, tmp_path / "report.html").read_text("utf-8")
    page = Page(source)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for attribute in ("src", "href", "srcset", "data"):
            assert (attributes.get(attribute) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import|\bfetch\(|XMLHttpRequest|WebSocket", source)
    assert source.count(words.DISCLAIMER) == 1
    layers = viewer_data(page)["layers"]
    assert {"scan", "restored"} <= set(layers)
    assert ("map" in layers) is (case.uncertainty is not None)
    assert ("mask" in layers) is (case.invented is not None)
    toggles = {a["data-toggle"] for _, a in page.elements if "data-toggle" in a}
    assert ("map" in toggles) is ("map" in layers) and ("outline" in toggles) is ("mask" in layers)


@pytest.mark.parametrize("name", CASES)
def test_the_overview_shows_a_column_for_everything_there_is(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    with Image.open(comparison_overview(case, tmp_path / "overview.png")) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 5
    columns = 2 if case.uncertainty is None else 3
    assert pixels.shape[1] > 400 + 240 * columns


def test_what_was_made_is_said_in_plain_words(page: Any) -> None:
    filled = page(CASES["inpaint"]()).text
    assert f"{10 * 12 * 9} voxels (1.6 % of the image), inside the outline, were invented" in filled
    assert "All others equal the scan." in filled
    assert "probability 90 %; measured: 91.3 %, on held-out drawn brains." in filled
    denoised = page(restoration()).text
    assert "Every voxel of the result was computed: none is a measurement." in denoised
    assert "seam ratio 1.07" in denoised and "within 0.1 %" in denoised
    assert "only relative" in page(CASES["translate"]()).text
    plain = page(CASES["classical"]()).text
    assert "There is no uncertainty map" in plain and "sha256" not in plain


def test_both_grids_are_named_where_they_differ(page: Any) -> None:
    text = page(CASES["super-resolve"]()).text
    assert "Grid of the scan 20 × 24 × 18 voxels of 2 × 2 × 2 mm" in text
    assert "Grid of the result 40 × 48 × 36 voxels of 1 × 1 × 1 mm" in text
    assert "Grid 40 × 48 × 36 voxels" in page(restoration()).text


def test_only_images_of_one_unit_are_subtracted(page: Any) -> None:
    for name, offered in (("denoise", True), ("translate", False)):
        shown = page(CASES[name]())
        bases = {a.get("data-base") for _, a in shown.elements}
        assert ("difference" in bases) is offered
        assert viewer_data(shown)["sameUnit"] is offered


def test_one_window_serves_two_units() -> None:
    low, high = _same_bytes((-100, 300), (0, 200), (1000, 3000))
    for value, other in ((0, 1000), (200, 3000)):  # the window's ends become the same bytes
        assert (value + 100) / 400 == pytest.approx((other - low) / (high - low))


def test_hostile_text_stays_text(page: Any) -> None:
    attack = '</script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'
    shown = page(
        restoration(
            source=f"{attack.replace('/', '')}.nii.gz",
            notes=(attack,),
            fallbacks=(attack,),
            measures={attack: attack},
            timings={attack: 1.0},
            device=attack,
        )
    )
    assert [tag for tag, _ in shown.elements].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert shown.text.count(attack) >= 5


def test_no_folder_and_no_dicom_name_reaches_the_page(tmp_path: Path) -> None:
    for source, kind in (("/home/DOE_JANE/scan.nii.gz", "nifti"), ("/in/DOE_JANE", "dicom")):
        case = restoration(source=source, format=kind)
        path = write_comparison(case, tmp_path / "report.html")
        assert "DOE_JANE" not in path.read_text("utf-8")


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_it_opens_at_the_hole_in_every_orientation(signs: tuple[int, ...]) -> None:
    scene = build_comparison(restoration("inpaint", affine=np.diag([*map(float, signs), 1.0])))
    assert scene.invented is not None and scene.invented[scene.focus()]
    assert scene.before[scene.focus()] == 0 and scene.after[scene.focus()] != 0


@pytest.mark.slow
def test_a_scan_of_256_voxels_a_side_makes_a_small_file(tmp_path: Path) -> None:
    case = restoration(shape=(256, 256, 256))
    path = write_comparison(case, tmp_path / "report.html")
    assert path.stat().st_size < 6e6
    data = viewer_data(Page(path.read_text("utf-8")))
    assert max(data["factors"]) > 1 and len(data["details"]) == 3


def test_a_reduced_volume_keeps_three_slices_of_full_resolution(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mosaic, "MAX_VOXELS", 4000)
    case = restoration("inpaint")
    scene, data = build_comparison(case), viewer_data(page(case))
    x, y, z = scene.shape
    assert [detail["shape"][:2] for detail in data["details"]] == [[x, y], [x, z], [y, z]]
    assert all(set(detail["layers"]) == set(data["layers"]) for detail in data["details"])
    assert data["start"] == [n // f for n, f in zip(scene.focus(), data["factors"], strict=True)]


def test_the_real_restoration_has_what_a_report_needs() -> None:
    needed = {name for name in vars(RestorationLike) if not name.startswith("_")}
    assert needed and needed <= {field.name for field in fields(Restoration)}


def test_torch_and_pyplot_stay_out(tmp_path: Path) -> None:
    program = (
        "import sys; from comparison_cases import restoration\n"
        "from medgen.report.comparison import write_comparison, comparison_overview\n"
        "case = restoration(); write_comparison(case, sys.argv[1])\n"
        "assert 'matplotlib' not in sys.modules; comparison_overview(case, sys.argv[2])\n"
        "heavy = {'torch', 'monai', 'matplotlib.pyplot', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    arguments = [str(tmp_path / "report.html"), str(tmp_path / "overview.png")]
    subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, cwd=Path(__file__).parent
    )


# ---- In a real browser ----

# Under virtual time a busy machine draws too few frames; a timer takes their place.
ACT = """<script>
window.requestAnimationFrame = paint => setTimeout(paint, 0);
const type = (key, at = document) =>
  at.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const look = () => {
  const shown = document.querySelector(".slice"), y = Math.round(shown.height * 0.3);
  const copy = document.createElement("canvas");
  copy.width = shown.width;
  const context = copy.getContext("2d", {willReadFrequently: true});
  context.drawImage(shown, 0, -y);
  const pixels = context.getImageData(0, 0, shown.width, 1).data;
  return {
    row: [...pixels], split: document.getElementById("split").valueAsNumber,
    readout: document.getElementById("readout").textContent,
    base: document.querySelector("[data-base][aria-pressed=true]").dataset.base,
  };
};
new MutationObserver(async () => {
  const view = document.querySelector(".view"), seen = [];
  for (const action of [%s]) {
    action();
    await new Promise(next => setTimeout(next, 20));
    seen.push(look());
  }
  document.body.dataset.seen = JSON.stringify(seen);
}).observe(document.documentElement, {attributeFilter: ["data-viewer"]});
</script></body>"""


def act(case: Any, tmp_path: Path, *actions: str) -> list[dict[str, Any]]:
    """Open the page, do one thing after another, and tell what is on it after each."""
    path = write_comparison(case, tmp_path / "report.html")
    listed = ", ".join(f"() => {{ {action} }}" for action in actions)
    path.write_text(path.read_text("utf-8").replace("</body>", ACT % listed), "utf-8")
    done = browser(path, "--dump-dom", "--window-size=1500,1000")
    assert 'data-viewer="ready"' in done.stdout, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, "nothing was seen"
    seen: list[dict[str, Any]] = json.loads(found[1].replace("&quot;", '"'))
    for state in seen:
        state["row"] = np.array(state["row"]).reshape(-1, 4)[:, :3].astype(int)
    return seen


def test_the_line_parts_before_from_after_and_every_picture_has_its_key(tmp_path: Path) -> None:
    white = 100 * np.ones((40, 40), np.float32)
    black = np.pad(white[1:-1, 1:-1] * 0, 1, constant_values=100)
    case = restoration(
        shape=(40, 40), affine=np.diag([-1.0, -1, 1, 1]), before=black, output=white,
        uncertainty=None,
    )  # fmt: skip
    right = "for (let i = 0; i < 10; i++) type('ArrowRight', view);"
    both, moved, before, after, difference = act(
        case, tmp_path, "", right, "type('b');", "type('a');", "type('d');"
    )
    middle = len(both["row"]) // 2
    bright = both["row"].min(axis=1) > 200
    assert not bright[middle - 100 : middle - 10].any() and bright[middle + 10 : middle + 100].all()
    moved_bright = moved["row"].min(axis=1) > 200
    assert moved_bright.mean() < bright.mean() - 0.05
    assert moved["split"] == pytest.approx(50 - 20, abs=2)
    assert before["base"] == "before" and before["row"][middle].max() < 50
    assert after["base"] == "after" and after["row"][middle].min() > 200
    red, _, blue = difference["row"][middle]
    assert difference["base"] == "difference" and blue > red + 50  # it was added: blue


def test_the_readout_has_the_values_of_both_units(tmp_path: Path) -> None:
    (seen,) = act(CASES["translate"](), tmp_path, "")
    scene = build_comparison(CASES["translate"]())
    number = r"([-\d.]+)"
    values = re.search(rf"before {number} .* after {number} ±", seen["readout"])
    assert values is not None
    assert float(values[1]) == pytest.approx(float(scene.before[scene.focus()]), abs=25)
    assert float(values[2]) == pytest.approx(float(scene.after[scene.focus()]), abs=60)


def test_slices_of_full_resolution_are_drawn_until_one_scrolls_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stripes = np.zeros((64, 64, 64), np.float32)
    stripes[::2] = 100  # gone when two voxels become one
    case = restoration(shape=(64, 64, 64), before=stripes, output=stripes, uncertainty=None)
    monkeypatch.setattr(mosaic, "MAX_VOXELS", 20_000)
    fine, coarse = act(case, tmp_path, "type('a');", "type('ArrowDown', view);")
    inside = slice(len(fine["row"]) // 2 - 40, len(fine["row"]) // 2 + 40)
    assert fine["row"][inside].std() > 60 > 30 > coarse["row"][inside].std()


def test_the_page_fits_a_narrow_window(tmp_path: Path) -> None:
    path = write_comparison(CASES["inpaint"](), tmp_path / "report.html")
    report = "<script>addEventListener('load', () => document.body.dataset.wide ="
    report += " document.documentElement.scrollWidth - innerWidth)</script></body>"
    path.write_text(path.read_text("utf-8").replace("</body>", report), "utf-8")
    done = browser(path, "--dump-dom", "--window-size=500,900")
    assert 'data-wide="0"' in done.stdout
