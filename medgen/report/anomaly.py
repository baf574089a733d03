"""A comparison of anomaly detectors for people: tables, curves, maps beside the truth, one page.

The tables say where every threshold came from, and which methods are not better than the
brightness of the image. Pictures show the test images themselves.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.report.benchmark import STYLE, html_table, markdown_table

Result = Mapping[str, Any]
Row = Mapping[str, Any]
Cells = list[list[str]]

MOST_FALSE_SHOWN = 10.0
# Share of a map's voxels in a picture that may be brighter than white.
BEYOND_WHITE = 0.002
BASELINE = "baseline"


@dataclass(frozen=True, eq=False)
class Curve:
    """A method's curves on the pooled test set; empty where they are undefined.

    Attributes:
        name: Of the method.
        kind: ``baseline`` curves are drawn dashed.
        recall: Of voxels, from high thresholds to low.
        precision: At each of them.
        false_findings: Per scan.
        sensitivity: Lesions found at each of them, 0..1.
    """

    name: str
    kind: str
    recall: NDArray[Any]
    precision: NDArray[Any]
    false_findings: NDArray[Any]
    sensitivity: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Panel:
    """What is drawn of a protocol.

    Attributes:
        protocol: Its name.
        curves: One per method.
        pictures: By method, slices with ``name``, ``image`` 0..1, ``truth`` and ``map``, each
            (rows, columns); empty if another protocol shows them.
    """

    protocol: str
    curves: list[Curve]
    pictures: dict[str, list[dict[str, Any]]]


MEANINGS: dict[str, str] = {
    "AUPRC": "average precision of the pooled voxels of all test cases (scores rounded to 14 "
    "significant bits); a map of noise has the prevalence. In brackets the 95 % interval of a "
    "bootstrap of whole subjects; ± is the deviation over seeds.",
    "above intensity": "AUPRC (where images are judged: AUROC) less that of the better of "
    "`intensity` and `intensity, inverted`, with the interval of the difference. Both need no "
    "training: histogram-equalised brightness of a voxel, or the mean brightness of an image.",
    "per case": "mean over cases of the exact AUPRC of each.",
    "AUROC": "chance that an abnormal voxel outscores a normal one. Near 1 for any method where "
    "lesions are small: not to be read alone.",
    "AUPRO": "share of each lesion found, averaged over lesions, up to a false-positive rate of "
    "0.3 (Bergmann et al. 2021), 0 to 1.",
    "Dice": "of the pooled voxels at a threshold fixed on other subjects, as the table says.",
    "best Dice": "OPTIMISTIC: the threshold was chosen on the test set itself. Nobody has it in "
    "practice.",
    "found @k": "share of lesions that findings find which are at least a tenth lesion, at the "
    "threshold that finds most with at most k false findings per scan, there and at every higher "
    "one.",
    "image AUROC": "chance that an abnormal image outscores a normal one.",
    "untrained": "the first method of the study with the weights it started from.",
}


def write_report(
    result: Result,
    cost: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    folder: Path,
    *,
    table: str,
    page: str,
) -> None:
    """Write the Markdown table and the page.

    Args:
        result: The contents of ``evaluation.json``.
        cost: Time and memory of each method.
        panels: What is drawn.
        folder: An existing folder.
        table: Name of the Markdown file.
        page: Name of the HTML file, which holds its pictures and asks no network.
    """
    (folder / table).write_text(markdown(result, cost), encoding="utf-8")
    (folder / page).write_text(html(result, cost, panels), encoding="utf-8")


def heading(result: Result) -> list[str]:
    """What was compared, line by line."""
    lines = []
    for name, facts in result["sets"].items():
        normal = f", {facts['normal']} of them normal" if facts["normal"] else ""
        number = f"{_counted(facts['cases'], 'case')} of {_counted(facts['subjects'], 'subject')}"
        lines.append(f"{name}: {number}{normal}.")
    settings = result["settings"]
    lines.append(
        f"Measured on the scans' own grids inside {result['region']}. Findings below "
        f"{settings['minimum_finding_mm3']:g} mm3 do not count. Bootstrap: "
        f"{settings['resamples']} draws of subjects, seed {settings['seed']}."
    )
    lines += [f"Failed: {name}: {message}" for name, message in result["failed"].items()]
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def sections(
    result: Result, cost: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[str], list[str], Cells]]:
    """Title, remarks, columns and cells of every table."""
    found: list[tuple[str, list[str], list[str], Cells]] = []
    for name, protocol in result["protocols"].items():
        rows = [row for row in result["rows"] if row["protocol"] == name]
        remarks = [f"After {protocol['source']}."] if protocol["source"] else []
        if protocol["differs"]:
            remarks.append(f"Differs: {protocol['differs']}.")
        if not rows:
            found.append((name, [*remarks, "No model can be evaluated so."], [], []))
            continue
        remarks += [*_verdict(rows), *_undefined(rows), *_thresholds(rows)]
        own: list[tuple[str, list[str], list[str], Cells]] = []
        if any("voxel" in row for row in rows):
            own.append((f"{name}: voxels and lesions", [], *voxel_table(rows)))
        if any(row["image"] for row in rows):
            own.append((f"{name}: images", [], *image_table(rows)))
        if any(row["normals"] for row in rows):
            own.append((f"{name}: false findings on normal cases", [], *normals_table(rows)))
        found += [(name, remarks, [], []), *own]
    found.append(("Cost", [], *cost_table(result, cost)))
    return found


def _verdict(rows: Sequence[Row]) -> list[str]:
    """Which methods are not better than brightness, said plainly."""
    trained = [row for row in rows if row["kind"] != BASELINE and "above_intensity" in row]
    if not trained:
        return []
    lost, open_ = [], []
    for row in trained:
        above = row["above_intensity"]
        if above["value"] <= 0:
            lost.append(row["name"])
        elif above["interval"] is None or above["interval"][0] <= 0:
            open_.append(row["name"])
    lines = []
    if lost:
        lines.append(f"NOT better than the untrained brightness: {', '.join(lost)}.")
    if open_:
        lines.append(f"Better, but the interval reaches 0 or is unknown: {', '.join(open_)}.")
    return lines


def _undefined(rows: Sequence[Row]) -> list[str]:
    """Why metrics are undefined, once each."""
    reasons = {(name, why) for row in rows for name, why in row["undefined"].items()}
    return [f"Undefined: {name}: {why}." for name, why in sorted(reasons)]


def _thresholds(rows: Sequence[Row]) -> list[str]:
    """Who chose the thresholds of Dice."""
    voxels = [row["voxel"] for row in rows if "voxel" in row]
    rules = sorted({threshold["rule"] for voxel in voxels for threshold in voxel["thresholds"]})
    return [f"Thresholds of Dice: {'; '.join(rules)}."] if rules else []


def voxel_table(rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Header and cells of pooled voxels and lesions."""
    numbers = list(rows[0]["lesion"]["sensitivity"])
    strata = rows[0]["lesion"]["by_size"]
    at = rows[0]["lesion"].get("by_size_at", 0)
    header = [
        "method", "seeds", "AUPRC", "above intensity", "per case", "AUROC", "AUPRO", "Dice",
        "best Dice (optimistic)", *(f"found @{number}" for number in numbers),
        *(f"{_range(one)}, {_counted(one['lesions'], 'lesion')} @{at:g}" for one in strata),
    ]  # fmt: skip
    best = _best([row["voxel"]["auprc"]["value"] for row in rows if "voxel" in row])
    cells = []
    for row in rows:
        voxel, lesion = row["voxel"], row["lesion"]
        cells.append(
            [
                row["name"],
                str(row["seeds"]),
                _bold(_interval(voxel["auprc"]), voxel["auprc"]["value"] == best),
                _above(row),
                _interval(voxel["per_case_auprc"]),
                _interval(voxel["auroc"]),
                _interval(voxel["aupro"]),
                _interval(voxel["dice"]),
                _interval(voxel["best_dice"]),
                *(f"{lesion['sensitivity'][number]:.2f}" for number in numbers),
                *(_plain(one["sensitivity"], 2) for one in lesion["by_size"]),
            ]
        )
    prevalence = rows[0]["voxel"]["prevalence"]
    cells.append(["*prevalence* (a map of noise)", "", f"{prevalence:.4f}"])
    return header, [line + [""] * (len(header) - len(line)) for line in cells]


def image_table(rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Header and cells of images as a whole."""
    known = [row for row in rows if row["image"]]
    alone = "voxel" not in known[0]  # else what is above intensity is said of voxels
    header = ["method", "seeds", "image AUROC", "above intensity", "image AUPRC"]
    if not alone:
        header.remove("above intensity")
    best = _best([row["image"]["auroc"]["value"] for row in known])
    cells = [
        [
            row["name"],
            str(row["seeds"]),
            _bold(_interval(row["image"]["auroc"]), row["image"]["auroc"]["value"] == best),
            *([_above(row)] if alone else []),
            _interval(row["image"]["auprc"]),
        ]
        for row in known
    ]
    part = known[0]["image"]["prevalence"]
    return header, [*cells, ["*abnormal images*", *[""] * (len(header) - 2), f"{part:.3f}"]]


def normals_table(rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Header and cells of false findings on normal cases of another source."""
    header = ["method", "false findings a case", "false volume a case (mm3)",
              "cases with a finding", "threshold"]  # fmt: skip
    return header, [
        [
            row["name"],
            f"{row['normals']['false_findings_per_case']:.2f}",
            f"{row['normals']['false_volume_mm3_per_case']:.0f}",
            f"{row['normals']['cases_with_findings']:.0%} of {row['normals']['cases']}",
            row["normals"]["threshold"],
        ]
        for row in rows
        if row["normals"]
    ]


def cost_table(result: Result, cost: Sequence[Mapping[str, Any]]) -> tuple[list[str], Cells]:
    """Header and cells of time and memory, which differ from run to run."""
    facts = {row["name"]: row["facts"] for row in result["rows"]}
    header = [
        "method", "parameters", "training (minutes)", "images trained on",
        "prediction of a case (s)", "memory of a prediction (GB)", "device", "SHA-256",
    ]  # fmt: skip
    cells = []
    for one in cost:
        own = facts.get(one["name"], {})
        images = own.get("training", {}).get("images")
        minutes = one["training_seconds"]
        cells.append(
            [
                one["name"],
                f"{own['parameters']:,}" if "parameters" in own else "",
                "" if minutes is None else f"{minutes / 60:.1f}",
                "" if images is None else f"{images:,}",
                f"{one['seconds_per_case']:.2f}",
                _plain(one["memory_gb"], 2, ""),
                one["device"],
                own.get("sha256", "")[:12],
            ]
        )
    return header, cells


def _best(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _bold(text: str, chosen: bool) -> str:
    return f"**{text}**" if chosen and text != "undefined" else text


def _plain(value: float | None, decimals: int, none: str = "undefined") -> str:
    return none if value is None else f"{value:.{decimals}f}"


def _interval(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "undefined"
    text = f"{one['value']:.3f}"
    if one["sd"] is not None:
        text += f" ± {one['sd']:.3f}"
    return text + (
        f" [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}]" if one["interval"] else ""
    )


def _above(row: Row) -> str:
    above = row.get("above_intensity")
    if above is None or row["name"] == above["baseline"]:
        return ""
    limits = above["interval"]
    text = f"{above['value']:+.3f}"
    return text + (f" [{limits[0]:+.3f}, {limits[1]:+.3f}]" if limits else "")


def _range(stratum: Mapping[str, Any]) -> str:
    low, high = stratum["from_mm3"], stratum["to_mm3"]
    return f"from {low:g} mm3" if high is None else f"{low:g} to {high:g} mm3"


def markdown(result: Result, cost: Sequence[Mapping[str, Any]]) -> str:
    """The whole comparison as Markdown."""
    lines = [f"# {result['name']}", "", f"`{result['command']}`", ""]
    lines += [f"- {line}" for line in heading(result)]
    for title, remarks, columns, cells in sections(result, cost):
        lines += ["", f"## {title}", "", *[f"{remark}\n" for remark in remarks]]
        if columns:
            lines += markdown_table(columns, cells)
    lines += ["", "## What the numbers mean", ""]
    lines += [f"- **{name}**: {text}" for name, text in MEANINGS.items()]
    return "\n".join(lines) + "\n"


def html(result: Result, cost: Sequence[Mapping[str, Any]], panels: Sequence[Panel]) -> str:
    """A page that stands alone: tables and pictures."""
    title = escape(result["name"])
    parts = ["<!doctype html><html lang=en><meta charset=utf-8>"]
    parts.append("<meta name=viewport content='width=device-width'>")
    parts.append(f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>")
    parts.append(f"<p><code>{escape(result['command'])}</code></p>")
    parts += [f"<p>{escape(line)}</p>" for line in heading(result)]
    for name, remarks, columns, cells in sections(result, cost):
        parts.append(f"<h2>{escape(name)}</h2>")
        parts += [f"<p>{escape(remark)}</p>" for remark in remarks]
        if columns:
            parts.append(html_table(columns, cells))
    parts.append("<h2>Curves</h2>")
    for panel in panels:
        picture = draw_curves(panel)
        if picture is not None:
            parts.append(f"<h3>{escape(panel.protocol)}</h3>{_image(picture, 'Curves')}")
    for panel in panels:
        if any(panel.pictures.values()):
            parts.append(
                f"<h2>Maps ({escape(panel.protocol)})</h2><p>The first abnormal cases, not chosen "
                "by result: the slice with most of the lesion, the truth outlined. Each method's "
                "white is its own. These are the images themselves: keep this page where they "
                f"may be kept.</p>{_image(draw_maps(panel), 'Maps of each method')}"
            )
    parts.append("<h2>What the numbers mean</h2><dl>")
    parts += [f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in MEANINGS.items()]
    parts.append("</dl><p>Research use only; not a medical device.</p>")
    return "\n".join(parts) + "\n"


def _image(png: bytes, words: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{words}' src='data:image/png;base64,{data}'>"


def draw_curves(panel: Panel) -> bytes | None:
    """Precision against recall, and lesions found against false findings; None without any."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [curve for curve in panel.curves if curve.recall.size]
    if not shown:
        return None
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, curve in enumerate(shown):
        style = {
            "color": colours[number % len(colours)],
            "linestyle": "--" if curve.kind == BASELINE else "-",
            "label": curve.name,
        }
        left.plot(curve.recall, curve.precision, **style)
        if curve.sensitivity.size:
            right.step(curve.false_findings, curve.sensitivity, where="post", **style)
    left.set(xlabel="recall of voxels", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    right.set(
        xlabel="false findings per scan", ylabel="lesions found", xlim=(0, MOST_FALSE_SHOWN),
        ylim=(0, 1),
    )  # fmt: skip
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return _png(figure)


def draw_maps(panel: Panel) -> bytes:
    """A row per case: the image with the truth outlined, and each method's map."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = {name: own for name, own in panel.pictures.items() if own}
    first = next(iter(methods.values()))
    columns, rows = 1 + len(methods), len(first)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, picture in enumerate(first):
        axes = grid[number][0]
        axes.imshow(picture["image"].astype(np.float32), cmap="gray", vmin=0, vmax=1)
        _outline(axes, picture["truth"])
        for place, own in enumerate(methods.values(), 1):
            axes = grid[number][place]
            shown = own[number]["map"]
            white = float(np.quantile(shown, 1 - BEYOND_WHITE)) or float(shown.max()) or 1.0
            axes.imshow(shown, cmap="inferno", vmin=min(0.0, float(shown.min())), vmax=white)
            _outline(axes, own[number]["truth"])
    for axes, title in zip(grid[0], ["image", *methods], strict=True):
        axes.set_title(title, fontsize=8)
    for axes in grid.ravel():
        axes.set_axis_off()
    return _png(figure)


def _outline(axes: Any, truth: NDArray[np.bool_]) -> None:
    if truth.any() and not truth.all():
        axes.contour(truth.astype(float), [0.5], colors="#56b4e9", linewidths=0.8)


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    # Without the name of the program that drew it, the same picture has the same bytes.
    figure.savefig(data, dpi=110, format="png", metadata={"Software": None})
    return data.getvalue()
