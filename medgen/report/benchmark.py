"""Table, pictures and page of a synthesis benchmark. Only generated images are shown."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# Colours of labels 1, 2, ... (Okabe and Ito, for all kinds of colour vision); then repeated.
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
PAIRS_SHOWN = 6
SYNTHETIC, MIXED, REAL = "synthetic only", "real + synthetic", "real"

Row = Mapping[str, Any]


class BenchmarkLike(Protocol):
    """What is drawn; see :class:`medgen.tasks.benchmark_synthesis.Benchmark`."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each baseline and method."""

    @property
    def facts(self) -> dict[str, Any]:
        """Of the data and the settings."""

    @property
    def failed(self) -> dict[str, str]:
        """Message of each cell that did not work."""


def write_report(found: BenchmarkLike, samples: Mapping[str, Path], folder: Path) -> None:
    """Write ``table.md``, ``samples.png``, ``dice.png`` and ``index.html``.

    Args:
        found: The result.
        samples: For each method's title the ``.npz`` of its uncurated samples, if it has any.
        folder: An existing folder.
    """
    (folder / "table.md").write_text(markdown(found), encoding="utf-8")
    there = {title: path for title, path in samples.items() if path.exists()}
    if there:
        draw_samples(there, folder / "samples.png")
    draw_dice(found.rows, folder / "dice.png")
    (folder / "index.html").write_text(page(found, folder), encoding="utf-8")


def markdown(found: BenchmarkLike) -> str:
    """The tables with what is needed to read them."""
    command = found.facts["command"]
    lines = ["# Annotated synthesis, compared", "", f"`{command}`", "", *_facts(found), ""]
    lines += markdown_table(*fidelity(found.rows))
    lines += ["", "## U-Net trained on it, Dice on held-out real patients", ""]
    lines += markdown_table(*usefulness(found.rows))
    lines += ["", "![Dice of each method](dice.png)", "", *NOTES]
    if any(row["training"] for row in found.rows):
        lines += ["![Generated images](samples.png)", ""]
    lines += [f"- Failed: {cell}: {message}" for cell, message in sorted(found.failed.items())]
    return "\n".join(lines).rstrip() + "\n"


NOTES = (
    "FID, KID (times 1000), precision, recall, density, coverage: synthetic against held-out real "
    "images of other patients, in the features named above; mean over seeds ± deviation. "
    "*floor*: two halves of the held-out real images that share no patient; because halves are "
    "small, compare it with the column *at floor's N*. *training images*: what copying them "
    "gets. Copy rate: share of images nearer to a training image than 95 % of the held-out real "
    "ones are. Numbers of other feature extractors (Inception, as in the literature) are not "
    "comparable.",
    "",
    "Dice: mean over labels, then over seeds, then over patients, with the 95 % bootstrap interval "
    "over patients; difference and Wilcoxon signed-rank p against *real images only*, paired by "
    "patient, not corrected for the number of comparisons. Every U-Net takes the same number of "
    "steps; half of each batch is synthetic in *real + synthetic*.",
    "",
)


def _facts(found: BenchmarkLike) -> list[str]:
    images, settings = found.facts["images"], found.facts["settings"]
    extractor = found.facts.get("extractor")
    each = f"{settings['minutes']:g} minutes" if settings["minutes"] else f"{settings['steps']}"
    budget = each if settings["minutes"] else f"{32 * settings['steps']} images"
    named = f"{extractor['name']} ({extractor['sha256'][:12]})" if extractor else "none"
    return [
        f"{images['images']} training images of {images['groups']} patients, "
        f"{images['held_out_images']} test images of {images['held_out_groups']} other patients, "
        f"{settings['size']} x {settings['size']} pixels, labels: "
        f"{', '.join(found.facts['labels'][1:])}. Each method trained on {budget}, "
        f"{settings['samples']} uncurated samples; U-Net {settings['segmentation_steps']} steps. "
        f"Features: {named}. Device: {found.facts['device']}.",
    ]


def fidelity(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: how like real images, how diverse, how much copied."""
    header = ["method", "seeds", "FID", "at floor's N", "KID x 1000", "precision", "recall",
              "density", "coverage", "copy rate", "MS-SSIM", "images", "minutes"]  # fmt: skip
    measured = [row for row in rows if row["metrics"]]
    cells = []
    for row in measured:
        metrics, training = row["metrics"], row["training"]
        cells.append(
            [
                row["title"],
                str(row["seeds"]),
                _number(metrics, "fid"),
                _number(metrics, "fid", "at_floor"),
                _number(metrics, "kid", scale=1000),
                *(_number(metrics, name) for name in ("precision", "recall", "density")),
                *(_number(metrics, name) for name in ("coverage", "copy_rate", "ms_ssim")),
                f"{training['images']:.0f}" if training else "",
                f"{training['seconds'] / 60:.1f}" if training else "",
            ]
        )
    names = ("precision", "recall", "density", "coverage")
    for title, key in (("*floor* (real against real)", "floor"), ("*training images*", "training")):
        if measured:
            metrics = measured[0]["metrics"]
            fid = _number(metrics, "fid", key)
            own = ["", fid] if key == "floor" else [fid, ""]
            more = [_number(metrics, "kid", key, scale=1000)]
            more += [_number(metrics, name, key) for name in (*names, "copy_rate", "ms_ssim")]
            cells.append([title, "", *own, *more, "", ""])
    return header, cells


def usefulness(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: Dice of U-Nets on real test patients."""
    header = ["trained on pairs of", SYNTHETIC, MIXED, "real + synthetic less real", "p"]
    cells = []
    for row in rows:
        dice = row["dice"]
        if REAL in dice:
            cells.append([row["title"], _interval(dice[REAL]), "", "", ""])
            continue
        mixed = dice[MIXED]
        change, p = "", ""
        if "difference" in mixed:
            low, high = mixed["difference_interval"]
            change = f"{mixed['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            p = f"{mixed['p_value']:.3f}"
        cells.append([row["title"], _interval(dice[SYNTHETIC]), _interval(mixed), change, p])
    return header, cells


def _interval(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['mean']:.3f} ({low:.3f} to {high:.3f})"


def _number(
    metrics: Mapping[str, Any], name: str, key: str = "value", *, scale: float = 1.0
) -> str:
    one = metrics.get(name, {})
    if one.get(key) is None:
        return ""
    text = f"{scale * one[key]:.3g}"
    return f"{text} ± {scale * one['sd']:.2g}" if key == "value" and one.get("sd") else text


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown; a bar in a cell is written so that it parts none."""

    def line(values: Sequence[str]) -> str:
        return f"| {' | '.join(value.replace('|', '&#124;') for value in values)} |"

    rule = "|".join("---" for _ in header)
    return [line(header), f"|{rule}|", *map(line, cells)]


def draw_samples(samples: Mapping[str, Path], path: Path) -> None:
    """A row for each method: its first samples, each followed by its label map in colours."""
    from medgen.report.contact_sheet import Tile, contact_sheet, overlay

    tiles = []
    for title, file in samples.items():
        with np.load(file, allow_pickle=False) as stored:
            images, labels = stored["image"][:PAIRS_SHOWN], stored["label"][:PAIRS_SHOWN]
        colours = [
            (0, 0, 0),
            *(COLOURS[n % len(COLOURS)] for n in range(int(labels.max(initial=1)))),
        ]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            # (1, columns, rows), as slices are stored, to a picture of rows.
            picture = image[0].T
            tiles += [Tile(picture, title if number == 0 else "")]
            tiles += [Tile(overlay(picture, label[0].T, colours))]
    contact_sheet(
        tiles, path, title="the first samples of each method, and their label maps",
        subtitle="uncurated; no real image is shown", columns=2 * PAIRS_SHOWN,
    )  # fmt: skip


def draw_dice(rows: Sequence[Row], path: Path) -> None:
    """Bars of Dice with intervals, beside what real images alone give."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if REAL not in row["dice"]]
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for offset, arm, colour in ((-0.19, SYNTHETIC, "#d55e00"), (0.19, MIXED, "#0072b2")):
        means = np.array([row["dice"][arm]["mean"] for row in shown])
        spans = np.array([row["dice"][arm]["interval"] for row in shown]).reshape(-1, 2)
        errors = np.abs(spans.T - means)
        places = np.arange(len(shown)) + offset
        axes.barh(places, means, 0.36, xerr=errors, color=colour, capsize=2, label=arm)
    for row in rows:
        if REAL in row["dice"]:
            one = row["dice"][REAL]
            axes.axvspan(*one["interval"], color="0.85", zorder=0)
            axes.axvline(one["mean"], color="0.3", label=f"{row['title']} (95 % interval)")
    axes.set_yticks(range(len(shown)), [row["title"] for row in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("Dice of a U-Net on held-out real patients")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def page(found: BenchmarkLike, folder: Path) -> str:
    """A page that stands alone: tables and pictures."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8>"]
    parts.append("<meta name=viewport content='width=device-width'>")
    parts.append(f"<title>Annotated synthesis, compared</title><style>{STYLE}</style>")
    parts.append("<h1>Annotated synthesis, compared</h1>")
    parts.append(f"<p><code>{escape(found.facts['command'])}</code></p>")
    parts += [f"<p>{escape(line)}</p>" for line in _facts(found)]
    parts.append(html_table(*fidelity(found.rows)))
    parts.append("<h2>Dice on held-out real patients</h2>")
    parts.append(html_table(*usefulness(found.rows)))
    for name, words in (("dice.png", "Dice of each method"), ("samples.png", "Generated images")):
        if (folder / name).exists():
            data = base64.b64encode((folder / name).read_bytes()).decode()
            parts.append(f"<img alt='{words}' src='data:image/png;base64,{data}'>")
    parts += [f"<p>{escape(note).replace('*', '')}</p>" for note in NOTES if note]
    failed = sorted(found.failed.items())
    parts += [f"<p>Failed: {escape(cell)}: {escape(message)}</p>" for cell, message in failed]
    return "\n".join(parts) + "\n"


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:left;white-space:nowrap}"
    "td:first-child,th:first-child{position:sticky;left:0;background:Canvas}"
    ":root{color-scheme:light dark}"
    "code{overflow-wrap:anywhere}"
    "img{max-width:100%;margin:1rem 0}"
)


def html_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The same in HTML, without asterisks."""

    def row(values: Sequence[str], tag: str) -> str:
        plain = (escape(value).replace("*", "") for value in values)
        return "<tr>" + "".join(f"<{tag}>{value}</{tag}>" for value in plain) + "</tr>"

    return "<table>" + row(header, "th") + "".join(row(line, "td") for line in cells) + "</table>"
