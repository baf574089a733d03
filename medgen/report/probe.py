"""Label-fraction curves for people: a table that keeps what did not help, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

PRETRAINED, RANDOM, PIXELS = "pre-trained", "random", "pixels"
# The safe colours of Okabe and Ito (2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
HEADER = ("network", "weights", "use", "labelled", "groups", "images", "AUROC", "over seeds",
          "95 % interval", "balanced accuracy")  # fmt: skip
DIFFERENCES = ("network", "use", "labelled", "AUROC, pre-trained less random", "95 % interval",
               "verdict")  # fmt: skip
TSV = ("model", "start", "use", "fraction", "seed", "groups", "images", "auroc",
       "balanced_accuracy")  # fmt: skip


def tsv(result: Result) -> str:
    """One line for every classifier."""
    lines = ["\t".join(TSV)]
    for row in result["rows"]:
        lines.append("\t".join(_plain(row[name]) for name in TSV))
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def curve_rows(result: Result) -> list[list[str]]:
    """Cells of the table of curves."""
    return [
        [
            row["model"], row["start"], row["use"], f"{100 * row['fraction']:g} %",
            str(row["groups"]), f"{row['images']:.0f}", f"{row['auroc']:.3f}",
            f"{row['lowest']:.3f} to {row['highest']:.3f}",
            "{:.3f} to {:.3f}".format(*row["interval"]), f"{row['balanced_accuracy']:.3f}",
        ]
        for row in result["curves"]
    ]  # fmt: skip


def difference_rows(result: Result) -> list[list[str]]:
    """Cells of the table of differences."""
    return [
        [
            row["model"], row["use"], f"{100 * row['fraction']:g} %", f"{row['difference']:+.3f}",
            "{:+.3f} to {:+.3f}".format(*row["interval"]), row["verdict"],
        ]
        for row in result["differences"]
    ]  # fmt: skip


def heading(result: Result) -> list[str]:
    """What was compared, line by line."""
    images, groups = result["images"], result["groups"]
    lines = [
        f"Labels: {', '.join(result['labels'])}.",
        f"{images['training']} images of {groups['training']} groups (patients) to take labels "
        f"from, {images['held_out']} of {groups['held_out']} held out for testing; "
        f"{result['seeds']} seeds.",
    ]
    for model in result["models"]:
        lines.append(
            f"{model['name']}: {model['method']}, {model['parameters']:,} parameters, "
            f"SHA-256 {model['sha256']}."
        )
    return lines


def notes(result: Result) -> list[str]:
    """What the numbers mean."""
    steps = result["fine_tune_steps"]
    lines = [
        "AUROC: on the held-out groups; of more than two labels the mean of each against the rest. "
        "0.5 is chance.",
        "labelled: part of the training groups, of each label at least one, so a small fraction of "
        "few groups is more than it says: the images are counted beside it.",
        "over seeds: lowest and highest of the seeds, which label other groups. 95 % interval: of "
        "the mean, with held-out groups and seeds drawn with replacement; the same draws for both "
        "sides of a difference.",
        "linear: logistic regression on the frozen features, standardised by all training images; "
        "its penalty is fixed (C 1), nothing is chosen by results.",
        "random: the same network with fresh weights. pixels: the image averaged to a coarse grid, "
        "without any network.",
        "verdict: by the interval of the difference, which has not been corrected for the number "
        "of comparisons.",
    ]
    if steps:
        lines.append(f"fine-tuned: the whole network, {steps} steps of 32 images, the same for "
                     "both kinds of weights.")  # fmt: skip
    return lines


def markdown(result: Result) -> str:
    """The whole comparison as Markdown."""
    lines = ["# What pre-training is worth", "", *[f"- {line}" for line in heading(result)]]
    for title, header, cells in (
        ("Pre-trained against random weights", DIFFERENCES, difference_rows(result)),
        ("All classifiers", HEADER, curve_rows(result)),
    ):
        lines += ["", f"## {title}", "", "| " + " | ".join(header) + " |"]
        lines += ["|" + "---|" * len(header), *("| " + " | ".join(row) + " |" for row in cells)]
    lines += ["", "## What the numbers mean", "", *[f"- {note}" for note in notes(result)]]
    return "\n".join(lines) + "\n"


def draw_curves(result: Result, path: Path) -> None:
    """AUROC over the number of labelled images; a panel for each use, a colour for each network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    uses = list(dict.fromkeys(row["use"] for row in result["curves"]))
    figure = Figure(figsize=(1.5 + 4.2 * len(uses), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(uses), sharey=True, squeeze=False)[0]
    names = [model["name"] for model in result["models"]]
    for axes, use in zip(panels, uses, strict=True):
        for name, start in dict.fromkeys((r["model"], r["start"]) for r in result["curves"]):
            rows = [row for row in result["curves"]
                    if (row["model"], row["start"], row["use"]) == (name, start, use)]  # fmt: skip
            if rows:
                _curve(axes, rows, name, start, names)
        axes.axhline(0.5, color="0.6", linewidth=0.8)
        axes.set_xscale("log")
        counts = sorted({row["images"] for row in result["curves"] if row["use"] == use})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("labelled images")
        axes.set_title({"linear": "frozen features, linear"}.get(use, use), fontsize=11)
    panels[0].set_ylabel("AUROC on held-out groups")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def _curve(
    axes: Any, rows: Sequence[Mapping[str, Any]], name: str, start: str, names: Sequence[str]
) -> None:
    colour, style = "0.35", ":"
    if name in names:
        colour = COLOURS[names.index(name) % len(COLOURS)]
        style = "-" if start == PRETRAINED else "--"
    images = [row["images"] for row in rows]
    label = PIXELS if start == PIXELS else f"{name}, {start}"
    axes.plot(images, [row["auroc"] for row in rows], style, marker="o", color=colour, label=label)
    low, high = ([row[end] for row in rows] for end in ("lowest", "highest"))
    axes.fill_between(images, low, high, color=colour, alpha=0.12, linewidth=0)
