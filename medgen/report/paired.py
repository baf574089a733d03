"""Results beside their references for people: tables, what the numbers mean, one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.report.frame import build_frame, cut, grey_window
from medgen.report.pages import render
from medgen.report.picture import Pixels, data_uri, grey_picture, outlined, resize
from medgen.volume import Volume

Result = Mapping[str, Any]

# Name in results: name for people, decimals (None: significant digits), better, what it is.
MEASURES: dict[str, tuple[str, int | None, str, str]] = {
    "mae": ("MAE", None, "low", "mean absolute difference, in the unit of the image."),
    "mse": ("MSE", None, "low", "mean squared difference, in that unit squared."),
    "psnr": (
        "PSNR",
        2,
        "high",
        "10 log10(range^2 / MSE) in dB. It depends on the data range: only numbers of one range "
        "can be compared. Infinite, so undefined, for identical images.",
    ),
    "ssim": (
        "SSIM",
        4,
        "high",
        "structural similarity, -1 to 1 (Wang et al. 2004): Gaussian window of 1.5 voxels, in 3-D "
        "for volumes; inside a mask its mean over the mask's voxels.",
    ),
    "ms_ssim": (
        "MS-SSIM",
        4,
        "high",
        "the same at up to five scales (Wang et al. 2003), 0 to 1; small images have fewer scales, "
        "so only images of one size can be compared.",
    ),
}
SIDE = 256  # pixels of the longer side of a picture
FULL_COLOUR = 0.25  # part of the data range at which a difference has its full colour
BRIGHTER, DARKER = np.array([255, 140, 26]), np.array([38, 140, 255])


@dataclass(frozen=True)
class Trio:
    """A slice of a reference, of the result, and their difference, as data URIs."""

    reference: str
    result: str
    difference: str
    caption: str


def trio(
    reference: Volume,
    result: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    data_range: float,
    caption: str,
) -> Trio:
    """Pictures of the slice with most of the mask, else the middle one.

    Args:
        reference: The truth, of one or three channels, of which one is shown.
        result: What is compared with it ``(C, *spatial)``.
        mask: Outlined where given ``(*spatial)``.
        data_range: Largest minus smallest possible value.
        caption: Below the pictures.
    """
    frame = build_frame(reference.geometry, reference.provenance)
    plane = frame.planes[0]
    a, b = frame.place(reference.voxels[0]), frame.place(result[0])
    inside = None if mask is None else frame.place(mask)
    index = frame.shape[plane.normal] // 2
    if inside is not None and inside.any():
        index = int(inside.sum(axis=(plane.across, plane.down)).argmax())
    width, height = (
        frame.shape[axis] * frame.spacing_mm[axis] for axis in (plane.across, plane.down)
    )
    scale = SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    window = grey_window(a)
    change = (cut(b, plane, index) - cut(a, plane, index)) / (FULL_COLOUR * data_range or 1.0)
    pictures = [
        grey_picture(cut(a, plane, index), window, size),
        grey_picture(cut(b, plane, index), window, size),
        resize(_coloured(change), size, smooth=False),
    ]
    if inside is not None:
        pictures = [outlined(picture, cut(inside, plane, index)) for picture in pictures]
    first, second, third = (data_uri(picture, "jpeg") for picture in pictures)
    return Trio(first, second, third, caption)


def _coloured(change: NDArray[Any]) -> Pixels:
    strength = np.abs(change).clip(0, 1)[..., None]
    colours = np.where(change[..., None] > 0, BRIGHTER, DARKER)
    return np.asarray(np.rint(strength * colours), np.uint8)


def heading(result: Result) -> list[str]:
    """What was compared, line by line."""
    rows = result["subjects"]
    spans = sorted({row["data_range"] for row in rows})
    span = f"{spans[0]:g}" if len(spans) == 1 else f"{spans[0]:g} to {spans[-1]:g}, by subject"
    patients = len({row["group"] for row in rows})
    counted = f"{len({row['subject'] for row in rows})} subjects"
    if patients < len({row["subject"] for row in rows}):
        counted += f" of {patients} patients"
    lines = [f"{counted}; measured over {result['region']}.", f"Data range: {span}."]
    if result["rescaled"]:
        lines.append("Before, the 1st and 99th percentile of each image were made 0 and 1.")
    return lines + [f"Note: {note}." for note in result["notes"]]


def _number(name: str, value: float | None, sign: str = "") -> str:
    if value is None:
        return "undefined"
    decimals = MEASURES[name][1]
    return f"{value:{sign}.4g}" if decimals is None else f"{value:{sign}.{decimals}f}"


def summary_rows(result: Result) -> list[list[str]]:
    """Cells of the table of methods."""
    cells = []
    for method, summary in result["methods"].items():
        cells.append([method, str(max(found["subjects"] for found in summary.values()))])
        for name, found in summary.items():
            text = _number(name, found["mean"])
            if found["interval"]:
                text += " ({} to {})".format(*(_number(name, v) for v in found["interval"]))
            if found["undefined"] and found["mean"] is not None:
                text += f", of {found['subjects']}"
            cells[-1].append(text)
    return cells


def test_rows(result: Result) -> list[list[str]]:
    """Cells of the table of Wilcoxon's tests."""
    cells = []
    for test in result["tests"]:
        name, interval = test["measure"], test["interval"]
        better = MEASURES[name][2] == "high"
        ahead = test["first"] if (test["difference"] > 0) is better else test["second"]
        limits = [_number(name, v, "+") for v in interval] if interval else []
        cells.append([
            f"{test['first']} - {test['second']}", MEASURES[name][0],
            _number(name, test["difference"], "+"), " to ".join(limits),
            f"{test['p_value']:.3g}", ahead if test["difference"] else "neither",
            f"{test['subjects']} (p at least {test['smallest_p_value']:.2g})",
        ])  # fmt: skip
    return cells


def subject_rows(result: Result) -> list[list[str]]:
    """Cells of the table of subjects."""
    return [
        [row["subject"], row["method"], str(row["voxels"]), f"{row['data_range']:g}",
         *(_number(name, row[name]) for name in MEASURES),
         "; ".join(f"{MEASURES[name][0]}: {why}" for name, why in row["undefined"].items())]
        for row in result["subjects"]
    ]  # fmt: skip


NAMES = tuple(title for title, *_ in MEASURES.values())
METHODS = (
    "method",
    "subjects",
    *(f"{title} ({better})" for title, _, better, _ in MEASURES.values()),
)
TESTS = ("difference", "measure", "mean", "95 % interval", "Wilcoxon p", "better mean", "patients")
SUBJECTS = ("subject", "method", "voxels", "data range", *NAMES, "undefined because")


def sections(result: Result) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, columns and cells of every table."""
    found: list[tuple[str, Sequence[str], list[list[str]]]] = [
        ("Methods: mean (95 % interval)", METHODS, summary_rows(result))
    ]
    if result["tests"]:
        found.append(("Methods against each other, paired by patient", TESTS, test_rows(result)))
    return [*found, ("Subjects", SUBJECTS, subject_rows(result))]


def meanings(result: Result) -> list[tuple[str, str]]:
    """Name and definition of what the tables hold."""
    found = [(title, text) for title, _, _, text in MEASURES.values()]
    found.append(
        ("95 % interval", "of the mean, by bootstrap: whole patients drawn with replacement.")
    )
    if result["tests"]:
        found.append(
            (
                "Wilcoxon p",
                "two-sided signed-rank test (Wilcoxon 1945) of the differences, patient by "
                "patient; not corrected for the number of tests. With few patients it cannot be "
                "small: the last column says how small at most.",
            )
        )
    return found


def markdown(result: Result) -> str:
    """The whole evaluation as Markdown."""
    lines = ["# Results and their references", "", *[f"- {line}" for line in heading(result)]]
    for title, columns, cells in sections(result):
        lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |"]
        lines += ["|" + "---|" * len(columns), *("| " + " | ".join(row) + " |" for row in cells)]
    lines += ["", "## What the numbers mean", ""]
    lines += [f"- **{title}**: {text}" for title, text in meanings(result)]
    return "\n".join(lines) + "\n"


def write_page(result: Result, pictures: Sequence[Trio], path: Path) -> None:
    """One HTML file that opens from disk and never asks the network.

    Args:
        result: Of an evaluation.
        pictures: What is shown of it. They are the images themselves, so the page must not leave
            the place where those may be.
        path: File; an existing one is replaced.
    """
    text = render(
        "paired.html",
        title="Results and their references",
        heading=heading(result),
        sections=sections(result),
        meanings=meanings(result),
        pictures=pictures,
        full=f"{FULL_COLOUR:.0%}",
    )
    path.write_text(text, encoding="utf-8")
