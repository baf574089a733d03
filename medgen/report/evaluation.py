"""An evaluation of synthetic images for people: a table, what each number means, one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.report.pages import render

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """A synthetic image and the training image nearest to it, as data URIs."""

    fake: str
    train: str
    distance: float
    caption: str


# Name in results: name for people, decimals, what it is.
METRICS: dict[str, tuple[str, int, str]] = {
    "fid": (
        "FID",
        3,
        "Frechet distance of two Gaussians fitted to the features (Heusel et al. 2017); squared "
        "feature units, 0 if alike. Grows as the number of images falls: read it beside the floor.",
    ),
    "kid": (
        "KID x 1000",
        2,
        "unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018); 0 if "
        "alike, may be slightly negative. Interval: 95 %, from random halves of both sets.",
    ),
    "precision": (
        "precision",
        2,
        "share of synthetic images within the range of real ones (Kynkaanniemi et al. 2019): "
        "fidelity.",
    ),
    "recall": (
        "recall",
        2,
        "share of real images within the range of synthetic ones (Kynkaanniemi et al. 2019): "
        "diversity.",
    ),
    "density": (
        "density",
        2,
        "how many real neighbourhoods a synthetic image lies in, relative to what is expected of "
        "real ones (Naeem et al. 2020); may exceed 1.",
    ),
    "coverage": (
        "coverage",
        2,
        "share of real images with a synthetic one in their neighbourhood (Naeem et al. 2020).",
    ),
    "ms_ssim": (
        "MS-SSIM of pairs",
        3,
        "mean structural similarity of two images of one condition (Wang et al. 2003); higher than "
        "that of real pairs means less diverse.",
    ),
    "copy_rate": (
        "copy rate",
        3,
        "share of synthetic images nearer to a training image, mirrored or not, than nearly all "
        "held-out real images are; the floor is that share of held-out real images themselves.",
    ),
    "class_accuracy": (
        "class accuracy (network)",
        3,
        "share of synthetic images that a small convolutional network, trained on held-out real "
        "images only, takes for the condition asked for; the floor is its accuracy on held-out "
        "images of patients it was not trained on (cross-validated). Mean over conditions.",
    ),
    "class_accuracy_features": (
        "class accuracy (features)",
        3,
        "the same with logistic regression on the features.",
    ),
}
COLUMNS = ("metric", "better", "synthetic", "95 % interval", "N real / synthetic",
           "at the floor's N", "floor (real against real)", "training images")  # fmt: skip


def rows(metrics: Result) -> list[list[str]]:
    """Cells of the table, one row per metric."""
    found = []
    for name, (title, decimals, _) in METRICS.items():
        row = metrics.get(name)
        if row is None:
            continue
        scale = 1000 if name == "kid" else 1

        def cell(key: str, row: Any = row, scale: int = scale, decimals: int = decimals) -> str:
            value = row.get(key)
            return "" if value is None else f"{scale * value:.{decimals}f}"

        interval = row.get("interval")
        limits = [f"{scale * v:.{decimals}f}" for v in interval] if interval else []
        floor = cell("floor") + (f" ± {cell('floor_sd')}" if cell("floor_sd") else "")
        if row.get("floor_n"):
            floor += f" (N {row['floor_n']})"
        numbers = " / ".join(str(n) for n in row["n"][:2])
        found.append(
            [title, row["better"], cell("value"), " to ".join(limits), numbers,
             cell("at_floor"), floor, cell("training")]
        )  # fmt: skip
    return found


def dice_rows(dice: Result) -> list[list[str]]:
    """Cells of the table of segmentation networks."""
    return [
        [name, str(row["n"]), f"{row['mean']:.3f}", "{:.3f} to {:.3f}".format(*row["interval"]),
         ", ".join(f"{label} {value:.3f}" for label, value in row["per_label"].items())]
        for name, row in dice["dice"].items()
    ]  # fmt: skip


def test_rows(dice: Result) -> list[list[str]]:
    """Cells of the table of paired tests."""
    return [
        [f"{test['first']} - {test['second']}", f"{test['difference']:+.3f}",
         "{:+.3f} to {:+.3f}".format(*test["interval"]), f"{test['p_value']:.3g}",
         f"{test['patients']} (p at least {test['smallest_p_value']:.2g})"]
        for test in dice["tests"]
    ]  # fmt: skip


DICE = ("trained on", "images", "Dice", "95 % interval", "by label")
TESTS = ("difference of Dice", "mean", "95 % interval", "Wilcoxon p", "patients")


def heading(result: Result) -> list[str]:
    """What the numbers were computed from, line by line."""
    extractor, images = result["extractor"], result["images"]
    size = " x ".join(str(n) for n in result["size"][1:])
    named = {"real": "held-out real", "fake": "synthetic", "train": "training"}
    counts = ", ".join(f"{images[key]} {name}" for key, name in named.items() if key in images)
    lines = [
        f"Images: {counts}; {size} pixels; {result['groups']} groups (patients) held out.",
        f"Features: {extractor['name']}, SHA-256 {extractor['sha256']}, {extractor['dimension']} "
        f"numbers an image; {extractor['preprocessing']}.",
    ]
    model = result.get("model") or {}
    if model.get("model"):
        lines.append(
            f"Model: {model['model']} {model['model_version']}, SHA-256 {model['model_sha256']}, "
            f"truncation {model['truncation']}, seed {model['seed']}."
        )
    lines += [f"Note: {note}." for note in result.get("notes", ())]
    lines += [f"Left out: {name}: {why}." for name, why in result.get("left_out", {}).items()]
    return lines


def copies(metrics: Result) -> str:
    """The copy rate in a sentence."""
    row = metrics["copy_rate"]
    return (
        f"{100 * row['value']:.1f} % of the synthetic images are nearer to a training image than "
        f"{100 * (1 - row['quantile']):.0f} % of the held-out real images are (95 % interval "
        f"{100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f} %; held-out real images "
        f"by construction {100 * row['floor']:.1f} %). A synthetic image is the nearer one of a "
        f"pair in {100 * row['nearer']:.0f} % of pairs (50 % if alike; one-sided Mann-Whitney "
        f"p {row['p_value']:.2g})."
    )


def sections(result: Result) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, columns and cells of every table."""
    found: list[tuple[str, Sequence[str], list[list[str]]]] = [
        ("All images", COLUMNS, rows(result["metrics"]))
    ]
    for name, metrics in result["by_condition"].items():
        if "left_out" not in metrics:
            found.append((f"Condition {name}", COLUMNS, rows(metrics)))
    dice = result.get("segmentation")
    if dice:
        budget = f"{dice['steps']} steps, {len(dice['seeds'])} seeds"
        found.append((f"U-Net on held-out real patients ({budget})", DICE, dice_rows(dice)))
        found.append(("Paired by patient", TESTS, test_rows(dice)))
    return found


def comparison(results: Sequence[tuple[str, Result]]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of several evaluations side by side; the caller saw to it that they may."""
    header = ["metric", "better", *[name for name, _ in results], "floor (real against real)"]
    tables = [{row[0]: row for row in rows(result["metrics"])} for _, result in results]
    cells = [
        [title, row[1], *[table.get(title, [""] * 3)[2] for table in tables], row[6]]
        for title, row in tables[0].items()
    ]
    return header, cells


def markdown(result: Result, earlier: Sequence[tuple[str, Result]] = ()) -> str:
    """The whole evaluation as Markdown."""
    lines = ["# Evaluation of synthetic images", "", *[f"- {line}" for line in heading(result)]]
    for title, columns, cells in sections(result):
        lines += ["", f"## {title}", "", *_table(columns, cells)]
    if earlier:
        together = [("this", result), *earlier]
        lines += ["", "## Beside earlier evaluations", "", *_table(*comparison(together))]
    if "copy_rate" in result["metrics"]:
        lines += ["", copies(result["metrics"])]
    lines += ["", "## What the numbers mean", ""]
    lines += [f"- **{title}**: {text}" for title, text in meanings(result)]
    return "\n".join(lines) + "\n"


def meanings(result: Result) -> list[tuple[str, str]]:
    """Name and definition of every metric of this evaluation, and of the columns."""
    found = [(METRICS[n][0], METRICS[n][2]) for n in METRICS if n in result["metrics"]]
    return [
        *found,
        (
            "floor",
            "the same number for two random halves of the real images that share no patient, mean "
            "± standard deviation over repeats. Halves are smaller, so compare it with the column "
            "to its left: the synthetic images at that number.",
        ),
        ("training images", "what a model would get that only copied its training images."),
    ]


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(row) + " |" for row in cells]


def write_page(result: Result, pairs: Sequence[Pair], path: Path, *, title: str) -> None:
    """One HTML file that opens from disk and never asks the network.

    Args:
        result: Of an evaluation.
        pairs: Synthetic images with their nearest training image. They show training images, so
            the page must not leave the place where those may be.
        path: File; an existing one is replaced.
        title: Of the page.
    """
    text = render(
        "evaluation.html",
        title=title,
        heading=heading(result),
        sections=sections(result),
        copies=copies(result["metrics"]) if "copy_rate" in result["metrics"] else "",
        meanings=meanings(result),
        pairs=pairs,
    )
    path.write_text(text, encoding="utf-8")
