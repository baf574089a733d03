"""From the cells of a comparison to the rows of its tables: pooled over cases, subjects and seeds.

Every row's intervals come from one table of draws of whole subjects, so that the difference of two
methods is drawn as their values are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.metrics.anomaly import Counts, Froc, froc_of
from medgen.metrics.tally import (
    Resampled,
    Tally,
    defined,
    draws,
    interval,
    resample,
    resampled_dice,
)
from medgen.report.anomaly import Curve, Panel
from medgen.tasks.anomaly_cases import Case
from medgen.tasks.anomaly_cell import Scores, read_pictures, read_scores
from medgen.tasks.anomaly_protocols import Variant
from medgen.tasks.anomaly_study import INTENSITY, INVERTED, Study, Unit
from medgen.tasks.benchmark_runs import RUNS, stored

FALSE_FINDINGS = (0.5, 1.0, 2.0, 5.0)
CURVE_POINTS = 300

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Row:
    """A method under one protocol, with all its seeds."""

    name: str
    variant: str
    kind: str
    results: list[dict[str, Any]]
    scores: list[Scores]


def summarise(
    study: Study,
    done: Sequence[Unit],
    output: Path,
    wanted: Sequence[Variant],
    cases: Mapping[str, Sequence[Case]],
) -> tuple[dict[str, Any], list[Panel]]:
    """The contents of ``evaluation.json``, and what the pictures show.

    Args:
        study: What was compared.
        done: The cells that are complete.
        output: Where they are.
        wanted: The protocols.
        cases: Of each set.

    Raises:
        InputError: Nothing is complete.
    """
    if not done:
        raise InputError("no model could be evaluated", "The messages above say why.")
    folders = {unit: output / RUNS / unit.label for unit in done}
    results = {unit: stored(folder) or {} for unit, folder in folders.items()}
    kept = {unit: read_scores(folders[unit], results[unit]) for unit in done}
    subjects = sorted({case.group for case in cases["test"]})
    weights = draws(len(subjects), study.resamples, study.seed)
    rows: list[dict[str, Any]] = []
    panels: list[Panel] = []
    for variant in wanted:
        found = _rows(variant, done, results, kept)
        measured = [_measured(row, subjects, weights) for row in found]
        _compare_with_brightness(found, measured)
        rows += [values for values, _ in measured]
        panels.append(_panel(variant, found, folders, results))
    result = {
        "name": study.name,
        "sets": {name: _described(members) for name, members in cases.items()},
        "region": "masks that were given" if study.test.regions else "the foreground found by "
        "the study's preparation, the same for all models",
        "protocols": {v.name: v.protocol.model_dump(mode="json") for v in wanted},
        "settings": {
            "seed": study.seed, "resamples": study.resamples,
            "minimum_finding_mm3": study.minimum_finding_mm3,
            "false_positive_rate": study.false_positive_rate,
        },
        "rows": rows,
    }  # fmt: skip
    return result, panels


def _described(cases: Sequence[Case]) -> dict[str, int]:
    return {
        "cases": len(cases),
        "subjects": len({case.group for case in cases}),
        "normal": sum(case.abnormal is False for case in cases),
    }


def _rows(
    variant: Variant,
    done: Sequence[Unit],
    results: Mapping[Unit, dict[str, Any]],
    kept: Mapping[Unit, dict[str, Scores]],
) -> list[_Row]:
    """The seeds of each method together, in the order of the study."""
    found: dict[str, _Row] = {}
    for unit in done:
        if variant.name in kept[unit]:
            row = found.setdefault(unit.name, _Row(unit.name, variant.name, unit.kind, [], []))
            row.results.append(results[unit])
            row.scores.append(kept[unit][variant.name])
    return list(found.values())


def _measured(
    row: _Row, subjects: Sequence[str], weights: Array
) -> tuple[dict[str, Any], Array | None]:
    """The numbers of a row, and what its ranking is worth in each draw of subjects."""
    values: dict[str, Any] = {
        "name": row.name, "protocol": row.variant, "kind": row.kind, "seeds": len(row.scores),
        "facts": row.results[0]["facts"], "memory_gb": row.results[0]["memory_gb"],
        "undefined": {},
    }  # fmt: skip
    samples: Array | None = None
    if row.scores[0].tallies:
        values["voxel"], samples = _voxel(row, subjects, weights, values["undefined"])
        values["lesion"] = _lesion(row, values["undefined"])
    values["image"], by_image = _image(row, subjects, weights, values["undefined"])
    values["normals"] = _normals(row)
    return values, by_image if samples is None else samples


def _voxel(
    row: _Row, subjects: Sequence[str], weights: Array, undefined: dict[str, str]
) -> tuple[dict[str, Any], Array]:
    """Metrics of the pooled voxels of all test cases."""
    empty = Tally.empty()
    per_subject = [[s.tallies.get(name, empty) for name in subjects] for s in row.scores]
    whole = [Tally.total(tallies) for tallies in per_subject]
    counts = [one.counts() for one in whole]
    drawn = [resample(tallies, weights) for tallies in per_subject]
    found: dict[str, Any] = {
        "auprc": _value([defined(partial(_average_precision, c)) for c in counts],
                        _mean(drawn, "average_precision"), "auprc", undefined),
        "auroc": _value([defined(c.auroc) for c in counts], _mean(drawn, "auroc"), "auroc",
                        undefined),
        "best_dice": _value([defined(partial(_best_dice, c)) for c in counts],
                            _mean(drawn, "best_dice"), "best_dice", undefined),
        "aupro": _value([defined(one.aupro) for one in whole], None, "aupro", undefined),
        "prevalence": float(counts[0].true[-1] / max(counts[0].true[-1] + counts[0].false[-1], 1)),
    }  # fmt: skip
    found["dice"] = _fixed(row, subjects, weights, undefined)
    found["thresholds"] = [r["thresholds"][row.variant] for r in row.results]
    found["per_case_auprc"] = _per_case(row, subjects, weights)
    return found, _mean(drawn, "average_precision")


def _value(
    found: Sequence[tuple[float | None, str]],
    samples: Array | None,
    name: str,
    undefined: dict[str, str],
) -> dict[str, Any]:
    """Mean over seeds, deviation over seeds, interval over subjects; None and why if undefined."""
    why = next((reason for _, reason in found if reason), "")
    if why:
        undefined[name] = why
        return {"value": None, "sd": None, "interval": None}
    values = [value for value, _ in found if value is not None]
    limits = None
    if samples is not None and len(np.unique(samples)) > 1:
        limits = interval(samples)
    return {
        "value": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "interval": None if limits is None else list(limits),
    }


def _average_precision(counts: Counts) -> float:
    return counts.average_precision().value


def _best_dice(counts: Counts) -> float:
    return counts.best_dice().value


def _mean(drawn: Sequence[Resampled], name: str) -> Array:
    """Mean over seeds, draw by draw."""
    return np.asarray(np.mean([getattr(one, name) for one in drawn], axis=0))


def _fixed(
    row: _Row, subjects: Sequence[str], weights: Array, undefined: dict[str, str]
) -> dict[str, Any]:
    """Dice of all voxels at the threshold that was fixed elsewhere."""
    parts = []
    for result, scores in zip(row.results, row.scores, strict=True):
        threshold = result["thresholds"][row.variant]
        if threshold["value"] is None:
            undefined["dice"] = threshold["rule"]
            return {"value": None, "sd": None, "interval": None}
        own = np.zeros((len(subjects), 3), np.int64)
        for case in scores.rows:
            own[subjects.index(case["subject"])] += case["overlap"]
        parts.append(own)
    totals = [own.sum(axis=0) for own in parts]
    if not all(total[2] for total in totals):
        undefined["dice"] = "no voxel of the test cases is abnormal"
        return {"value": None, "sd": None, "interval": None}
    found = [2 * t / (t + f + a) for t, f, a in totals]
    samples = np.mean([resampled_dice(own, weights) for own in parts], axis=0)
    return _value([(float(value), "") for value in found], samples, "dice", undefined)


def _per_case(row: _Row, subjects: Sequence[str], weights: Array) -> dict[str, Any]:
    """Mean over cases of the exact AUPRC of each."""
    sums = np.zeros((len(row.scores), len(subjects), 2))
    for number, scores in enumerate(row.scores):
        for case in scores.rows:
            if case.get("auprc") is not None:
                sums[number, subjects.index(case["subject"])] += case["auprc"], 1
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [float(own[:, 0].sum() / own[:, 1].sum()) for own in sums]
        drawn = [(weights @ own[:, 0]) / (weights @ own[:, 1]) for own in sums]
    if not np.isfinite(means).all():
        return {"value": None, "sd": None, "interval": None}
    return _value([(mean, "") for mean in means], np.mean(drawn, axis=0), "", {})


def _lesion(row: _Row, undefined: dict[str, str]) -> dict[str, Any]:
    """Sensitivity at a few numbers of false findings, and by size of the lesion."""
    curves = [_curve(scores) for scores in row.scores]
    if any(curve is None for curve in curves):
        undefined["lesion sensitivity"] = "no test case has a lesion"
        return {"lesions": 0, "sensitivity": {}, "by_size": []}
    known = [curve for curve in curves if curve is not None]
    strata = [curve.by_size(FALSE_FINDINGS[-1]) for curve in known]
    return {
        "lesions": int(known[0].lesion_volumes_mm3.size),
        "sensitivity": {
            f"{number:g}": float(np.mean([curve.sensitivity_at(number) for curve in known]))
            for number in FALSE_FINDINGS
        },
        "by_size": [
            {
                "from_mm3": low,
                "to_mm3": None if np.isinf(high) else high,
                "lesions": strata[0][low, high][1],
                "sensitivity": _or_none(np.mean([one[low, high][0] for one in strata])),
            }
            for low, high in strata[0]
        ],
        "by_size_at": FALSE_FINDINGS[-1],
    }


def _or_none(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _curve(scores: Scores) -> Froc | None:
    if not any(one.lesion_volumes_mm3.size for one in scores.sweeps):
        return None
    return froc_of(scores.sweeps)


def _image(
    row: _Row, subjects: Sequence[str], weights: Array, undefined: dict[str, str]
) -> tuple[dict[str, Any] | None, Array | None]:
    """Metrics of scan scores: normal against abnormal images."""
    known = [case for case in row.scores[0].rows if case["abnormal"] is not None]
    if len({case["abnormal"] for case in known}) < 2:
        undefined["image-level"] = "not both normal and abnormal images in the test set"
        return None, None
    per_subject = [_scan_tallies(scores, subjects) for scores in row.scores]
    counts = [Tally.total(tallies).counts() for tallies in per_subject]
    drawn = [resample(tallies, weights) for tallies in per_subject]
    auroc = _mean(drawn, "auroc")
    found = {
        "auroc": _value([defined(c.auroc) for c in counts], auroc, "image AUROC", undefined),
        "auprc": _value([defined(partial(_average_precision, c)) for c in counts],
                        _mean(drawn, "average_precision"), "image AUPRC", undefined),
        "prevalence": float(np.mean([case["abnormal"] for case in known])),
        "images": len(known),
    }  # fmt: skip
    return found, auroc


def _scan_tallies(scores: Scores, subjects: Sequence[str]) -> list[Tally]:
    """Scan scores of each subject's images, as a tally of voxels would hold them."""
    of: dict[str, list[tuple[float, bool]]] = {name: [] for name in subjects}
    for case in scores.rows:
        if case["abnormal"] is not None:
            of[case["subject"]].append((case["scan_score"], case["abnormal"]))
    return [
        Tally.of([s for s, _ in own], [a for _, a in own], rounded=False) if own else Tally.empty()
        for own in of.values()
    ]


def _normals(row: _Row) -> dict[str, Any] | None:
    """False findings on normal cases of another source."""
    sets = [result["sets"].get("normals", {}).get(row.variant) for result in row.results]
    rows = [case for one in sets for case in one or () if "false_findings" in case]
    if not rows:
        return None
    threshold = row.results[0]["thresholds"][row.variant]
    fixed = threshold["value"] is not None
    return {
        "cases": len(rows) // len(row.results),
        "false_findings_per_case": float(np.mean([r["false_findings"] for r in rows])),
        "false_volume_mm3_per_case": float(np.mean([r["false_volume_mm3"] for r in rows])),
        "cases_with_findings": float(np.mean([r["false_findings"] > 0 for r in rows])),
        "threshold": threshold["rule"] if fixed else "best Dice on the test set (optimistic)",
    }


def _compare_with_brightness(
    found: Sequence[_Row], measured: Sequence[tuple[dict[str, Any], Array | None]]
) -> None:
    """How much each row's AUPRC (of images: AUROC) is above that of the better brightness."""

    def main(values: Mapping[str, Any]) -> float:
        part = values.get("voxel") or values["image"] or {}
        value = (part.get("auprc") if values.get("voxel") else part.get("auroc")) or {}
        return -1.0 if value.get("value") is None else float(value["value"])

    bright = [
        (main(values), samples, values["name"])
        for row, (values, samples) in zip(found, measured, strict=True)
        if row.name in (INTENSITY, INVERTED) and samples is not None
    ]
    if not bright:
        return
    best, base, name = max(bright, key=lambda one: one[0])
    for values, samples in measured:
        if samples is None or base is None or main(values) < 0:
            continue
        limits = interval(samples - base) if len(np.unique(samples)) > 1 else None
        values["above_intensity"] = {
            "baseline": name,
            "value": main(values) - best,
            "interval": None if limits is None else list(limits),
        }


def _panel(
    variant: Variant,
    found: Sequence[_Row],
    folders: Mapping[Unit, Path],
    results: Mapping[Unit, dict[str, Any]],
) -> Panel:
    """Curves of each row's first seed, and its maps if this protocol is the one that kept them."""
    curves = []
    for row in found:
        scores = row.scores[0]
        recall, precision = np.zeros(0), np.zeros(0)
        if scores.tallies:
            counts = Tally.total(list(scores.tallies.values())).counts()
            if counts.true[-1]:
                recall = counts.true / counts.true[-1]
                precision = counts.true / (counts.true + counts.false)
        findings, sensitivity = np.zeros(0), np.zeros(0)
        curve = _curve(scores) if scores.tallies else None
        if curve is not None:
            # The best that so many false findings allow, as in the tables.
            findings = _few(np.maximum.accumulate(curve.false_positives_per_scan))
            sensitivity = _few(np.maximum.accumulate(curve.found) / len(curve.lesion_volumes_mm3))
        curves.append(
            Curve(row.name, row.kind, _few(recall), _few(precision), findings, sensitivity)
        )
    pictures = {}
    for unit, folder in folders.items():
        names = results[unit]["variants"]
        if names and names[0] == variant.name and unit.name not in pictures:
            pictures[unit.name] = read_pictures(folder, results[unit])
    return Panel(variant.name, curves, pictures)


def _few(values: NDArray[Any]) -> NDArray[Any]:
    """At most so many points of a curve, its ends among them."""
    if len(values) <= CURVE_POINTS:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, CURVE_POINTS).astype(int))]
