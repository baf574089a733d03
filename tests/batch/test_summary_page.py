"""The cohort's table, JSON and page: complete, exact, and safe with any text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from summary_cases import COLUMNS, FLAGS, cohort, random_rows, three_rows

from medgen.batch.summary import DISCLAIMER, FORMULA_STARTS, MISSING, Row, cell, summary, table
from medgen.batch.summary_page import duration, groups, link, moment, page, topic, write_summary
from medgen.batch.thumbnail import PIXELS, thumbnail, write_thumbnail
from medgen.errors import InputError
from medgen.scoring import find
from medgen.volume import Geometry, Provenance, Volume

HOSTILE = "</script><img src=x onerror=alert(1)><!-- {{ 7 * 7 }} \u2028 & \"'"


class Page(HTMLParser):
    """Elements with their attributes, and the contents of scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.raw:
            self.raw[self.inside].append(data)

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.raw["script"][0])


def read_table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


# ---- Table and JSON ----


def test_each_case_is_one_line_and_every_number_comes_back() -> None:
    rows = random_rows(200)
    text = table(cohort(rows))
    assert len(text.splitlines()) == 201
    for row, read in zip(rows, read_table(text), strict=True):
        assert (read["case"], read["state"]) == (row.case, row.state)
        assert read["reason"] == (row.reason or MISSING)
        for column in COLUMNS:
            value = (row.values or {}).get(column["key"])
            if value is None:
                assert read[column["key"]] == MISSING
            else:
                assert float(read[column["key"]]) == pytest.approx(value, rel=1e-5)


def test_the_json_holds_every_case_exactly() -> None:
    rows = [*three_rows(), Row("odd", "failed", reason="=1+1\t\n'", flags=("a;b", "c"))]
    saved = json.loads(json.dumps(summary(cohort(rows)), allow_nan=False))
    assert saved["counts"] == {
        "done": 2, "failed": 2, "skipped": 0, "waiting": 0, "interrupted": 0,
    }  # fmt: skip
    for row, read in zip(rows, saved["cases"], strict=True):
        expected = {column["key"]: (row.values or {}).get(column["key"]) for column in COLUMNS}
        assert read.pop("values") == expected
        assert Row(**{**read, "flags": tuple(read["flags"])}) == replace(row, values=None)


@given(st.text(max_size=40))
def test_any_text_stays_in_its_cell(text: str) -> None:
    row = Row("a", "failed", reason=text, hint=text, flags=(text, text))
    written = table(cohort([row, row]))
    assert written.count("\n") == 3
    first, _ = read_table(written)
    guard = "'" if text.lstrip().startswith(FORMULA_STARTS) else ""
    assert unescaped(first["reason"]) == (guard + text if text else MISSING)


def unescaped(text: str) -> str:
    short = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return re.sub(
        r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|.)",
        lambda m: short[m[1]] if len(m[1]) == 1 else chr(int(m[1][1:], 16)),
        text,
    )


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =cmd|x", "＝1", "\t=1"])
def test_text_never_becomes_a_formula(text: str) -> None:
    assert cell(text)[0] in "'\\"
    assert cell(-1.5) == "-1.5"
    assert cell(-3) == "-3"


def test_what_is_not_a_number_is_missing() -> None:
    row = Row("a", "done", values={"scan_score": math.nan, "p_value": math.inf}, seconds=math.nan)
    made = cohort([row], seconds=math.nan)
    assert read_table(table(made))[0]["scan_score"] == MISSING
    assert read_table(table(made))[0]["seconds"] == MISSING
    text = json.dumps(summary(made), allow_nan=False)
    assert json.loads(text)["cases"][0]["values"]["p_value"] is None
    assert "values" not in Page(page(made)).data["rows"][0]


def test_paths_that_leave_the_folder_and_clashing_columns_are_refused() -> None:
    for path in ("/etc/passwd", "../x", "a/../../b", "C:/x", "a\\b"):
        with pytest.raises(ValueError, match="relative"):
            Row("a", "done", report=path)
    with pytest.raises(ValueError, match="names of their own"):
        cohort([], columns=[{**COLUMNS[0], "key": "state"}])
    with pytest.raises(ValueError, match="format"):
        cohort([], columns=[{**COLUMNS[0], "format": "{}"}])


# ---- The page ----


def test_the_page_asks_nothing_of_the_network_and_runs_only_its_own_script() -> None:
    source = page(cohort(random_rows(50)))
    shown = Page(source)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|\bfetch\(", source)
    assert "innerHTML" not in source
    policy = next(a["content"] for _, a in shown.elements if a.get("http-equiv")) or ""
    for kind, text in (("script", shown.raw["script"][1]), ("style", shown.raw["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert source.count(DISCLAIMER) == 1
    for tag, attributes in shown.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert (attributes.get("href") or "./").startswith("./")


def test_hostile_text_stays_text() -> None:
    flags = (HOSTILE, "javascript:alert(1)")
    values = {"scan_score": HOSTILE, "__proto__": HOSTILE}
    row = Row(
        HOSTILE, "failed", reason=HOSTILE, hint=HOSTILE, flags=flags, values=values,
        folder="javascript:alert(1)", report="a b/#?%00<x>\u00fc.html", thumbnail="x' y.png",
        chosen=HOSTILE,
    )  # fmt: skip
    changes = {"title": HOSTILE, "description": HOSTILE, "model": HOSTILE, "started": HOSTILE}
    columns = [{**COLUMNS[0], "label": HOSTILE, "meaning": HOSTILE}]
    aside = [{"reason": HOSTILE, "objects": 1}]
    versions = {HOSTILE: HOSTILE}
    shown = Page(
        page(cohort([row], **changes, columns=columns, set_aside=aside, versions=versions))
    )
    tags = [tag for tag, _ in shown.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, a in shown.elements for name in a)
    case = shown.data["rows"][0]
    assert case["reason"] == case["case"] == HOSTILE
    assert case["folder"] == "./javascript%3Aalert%281%29"
    assert unquote(case["report"]) == "./a b/#?%00<x>\u00fc.html"
    assert not set(case["report"]) & set("#?<> ")


def test_half_characters_do_not_stop_the_summary(tmp_path: Path) -> None:
    write_summary(tmp_path, cohort([Row("a", "failed", reason="bad \udcff name")]))
    assert "bad ? name" in (tmp_path / "summary.json").read_text("utf-8")


def test_failures_are_grouped_by_what_they_have_in_common() -> None:
    rows = [
        Row(f"case-{n}", "failed", reason=f"only {n} slices", hint="send more") for n in range(5)
    ]
    rows += [Row("x", "interrupted"), Row("y", "skipped", reason="not a brain"), Row("z", "done")]
    first, second, third = groups(rows)
    assert (first.topic, first.same, len(first.cases)) == ("only # slices", False, 5)
    assert first.examples == "case-0, case-1, case-2 and 2 more"
    assert second.state == "interrupted"
    assert second.reason == "No reason was recorded."
    assert third.state == "skipped"
    source = page(cohort(rows))
    attention = source[source.index("Needs attention") : source.index("Skipped cases")]
    assert "only 0 slices" in attention
    assert "send more" in attention
    assert "not a brain" not in attention


def test_every_topic_of_a_case_can_be_chosen() -> None:
    data = Page(page(cohort(random_rows(300)))).data
    offered = {(t["kind"], t["topic"]) for t in data["topics"]}
    used = {tuple(key) for row in data["rows"] for key in row.get("topics", [])}
    assert used == offered
    assert ("flag", topic(FLAGS[0].format(n=3))) in offered


def test_without_javascript_the_first_cases_can_be_read() -> None:
    rows = random_rows(150)
    source = page(cohort(rows))
    plain = source[source.index("<noscript>") : source.index("</noscript>")]
    assert plain.count("<tr>") == 101
    assert rows[0].case in plain
    assert f'href="./{rows[0].report}"' in plain
    assert rows[120].case not in plain


def test_an_unfinished_run_says_so() -> None:
    rows = [*three_rows(), Row("later", "waiting")]
    source = page(cohort(rows, finished=None, seconds=None, model=None))
    assert "1 case has not been started" in source
    assert "not yet" in source
    empty = page(cohort([], set_aside=[], versions={}))
    assert "Cases" in empty


def test_words_for_time() -> None:
    assert [duration(s) for s in (0.24, 59.6, 61, 3599.7, 20220)] == [
        "0.2 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "5 h 37 min",
    ]  # fmt: skip
    assert moment("2025-03-02T21:05:11Z") == "2025-03-02 21:05"
    assert moment("soon") == "soon"


def test_links_lead_to_the_files() -> None:
    assert link(None) is None
    assert link("cases/a b/100%.html") == "./cases/a%20b/100%25.html"


def test_files_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_summary(tmp_path, cohort(three_rows()))
    write_summary(tmp_path, cohort(random_rows(5)))
    assert {p.name for p in tmp_path.iterdir()} == {"summary.tsv", "summary.json", "index.html"}
    assert len(json.loads((tmp_path / "summary.json").read_text("utf-8"))["cases"]) == 5
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        write_summary(tmp_path / "file", cohort([]))


def test_heavy_libraries_stay_out() -> None:
    program = (
        "import sys, medgen.batch.summary_page, medgen.batch.thumbnail\n"
        "heavy = {'torch', 'monai', 'matplotlib', 'dask', 'distributed', 'PIL', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- Thumbnails ----


def detection(scan: Any, scores: Any, affine: Any, format: str = "nifti") -> Any:
    geometry = Geometry(scan.shape[1:], affine)
    mask, findings = find(scores, geometry, 0.5)
    volume = Volume(scan, geometry, Provenance(format=format))
    return SimpleNamespace(
        volume=volume, map=scores, mask=mask, restored=None, findings=findings,
        brain_mask=np.ones(geometry.shape, dtype=bool), threshold=0.5,
    )  # fmt: skip


def two_lesions() -> Any:
    """A grey block with a small strong and a large weak finding, 1 x 1 x 4 mm, stored LPI."""
    scan = np.zeros((40, 60, 12), np.float32)
    scan[4:36, 4:56] = 300
    scores = np.zeros(scan.shape, np.float32)
    scores[8:10, 8:10, 2] = 0.99
    scores[24:32, 40:50, 8] = 0.7
    return detection(scan[None], scores, np.diag([-1.0, -1, -4, 1]))


def turquoise(picture: Any) -> Any:
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    return (green - red > 60) & (blue - red > 40)


def test_a_thumbnail_shows_the_largest_finding_on_the_patients_side(tmp_path: Path) -> None:
    picture = thumbnail(two_lesions())
    rows, columns = np.nonzero(turquoise(picture))
    assert len(rows) > 20
    assert columns.mean() > 80 + 10  # a high index is left: on the right
    assert rows.mean() > 80 + 20  # and to the back: at the bottom
    path = write_thumbnail(tmp_path / "deep" / "thumbnail.png", two_lesions())
    with Image.open(path) as image:
        saved = np.asarray(image.convert("RGB"))
    assert saved.shape == (160, 160, 3)
    assert turquoise(saved).sum() > 20  # the outline survives the palette
    assert path.stat().st_size < 12_000
    assert path.read_bytes() == write_thumbnail(path, two_lesions()).read_bytes()


def test_a_thumbnail_keeps_physical_proportions() -> None:
    scan = np.zeros((1, 30, 30, 5), np.float32)
    scan[0, 1:29, 1:29, 1:4] = 1
    none = np.zeros(scan.shape[1:], np.float32)
    bright = thumbnail(detection(scan, none, np.diag([1.0, 2, 5, 1]))).max(axis=-1) > 128
    height, width = np.ptp(np.nonzero(bright)[0]), np.ptp(np.nonzero(bright)[1])
    assert height / width == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    ("shape", "format"),
    [((1, 30, 20), "dicom"), ((3, 20, 30), "png"), ((1, 9, 1, 30), "nifti"), ((1, 1, 1, 1), "png")],
)
def test_a_thumbnail_of_anything(shape: tuple[int, ...], format: str) -> None:
    scan = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scan.flat[1:2] = np.nan
    made = detection(scan, np.zeros(shape[1:], np.float32), np.eye(4), format)
    assert thumbnail(made).shape == (PIXELS, PIXELS, 3)
