"""Benchmark of annotated synthesis: many methods, one budget, real patients to be tested on.

Repeats Skandarani, Jodoin and Lalande, "GANs for Medical Image Synthesis: An Empirical Study"
(J Imaging 9(3):69, 2023), on any annotated set: each method learns from the training patients and
makes images with label maps; their distance to images of other patients is measured, and so is the
Dice that a U-Net reaches on those patients when it was trained on synthetic pairs only, on real
and synthetic ones, and on real ones only. Patients are split once, for all methods and seeds.

Every method and seed leaves a file of its own, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medgen.metrics.anomaly import bootstrap_interval
from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.benchmark_cell import (
    MIXED,
    SAMPLES,
    SYNTHETIC,
    read_pairs,
    run_cell,
)
from medgen.tasks.benchmark_plan import BASELINES, REAL, SUITES, BenchmarkSettings, Cell, planned
from medgen.tasks.benchmark_runs import IN_TURN, Runner, claim, device_name, run_all, stored
from medgen.tasks.detect_files import write_json
from medgen.tasks.output_folder import refuse_inside
from medgen.tasks.running import Progress

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

OUTPUTS = ("results.json", "table.md", "index.html", "samples.png", "dice.png", "run.json")
METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "copy_rate", "ms_ssim")


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found.

    Attributes:
        rows: One for each baseline and method: ``name``, ``title``, ``seeds``, ``metrics`` (mean
            and deviation over seeds), ``dice`` (for each training set: mean over patients, 95 %
            interval, difference to real images only) and ``training``.
        facts: Of the data and the settings.
        failed: Message of each cell that did not work.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any]
    failed: dict[str, str]


def benchmark(
    dataset: Path,
    output: Path,
    settings: BenchmarkSettings,
    *,
    methods: Sequence[str] = (),
    seeds: int = 1,
    device: str = "auto",
    runner: Runner = IN_TURN,
    resume: bool = False,
    progress: Progress | None = None,
) -> Benchmark:
    """Run the study and write its tables and pictures.

    Args:
        dataset: Folder of an annotated set (see :mod:`medgen.annotated_sets`).
        output: Folder for everything; with ``resume`` that of an interrupted run.
        settings: The same for all methods.
        methods: Of the suite; empty: all.
        seeds: How often each method is trained.
        device: Where to compute.
        runner: Of the cells; :func:`medgen.batch.cells.runner` makes one for several at a time.
        resume: Go on, with the same settings; there may be more methods and seeds.
        progress: Called with (done, total) after each cell.

    Raises:
        InputError: Unknown method, a set without labels or with too few patients, a used folder.
        PackageError: Unknown feature extractor.
        LeakageError: A patient would be trained on and tested on.
    """
    from medgen.devices import resolve_device
    from medgen.features import FeatureExtractor
    from medgen.report.benchmark import write_report

    device = resolve_device(device)
    cells = planned(settings.suite, methods, seeds)
    refuse_inside(output, dataset)
    FeatureExtractor.load(settings.features)  # an unknown one is better refused now
    pairs = read_pairs(dataset, settings)
    header = {"settings": settings.model_dump(mode="json"), "dataset": fingerprint(dataset)}
    claim(output, header, resume)
    timings: dict[str, float] = {}
    with timed(timings, "cells"):
        failed = _run_all(cells, dataset, output, settings, device, runner, progress)
    results = [r for cell in cells if (r := stored(output / cell.folder)) is not None]
    extractor = next((r["measure"]["extractor"] for r in results if "measure" in r), None)
    command = command_line(settings, methods, seeds, runner.jobs)
    facts = header | {
        "command": command,
        "device": device_name(device),
        "extractor": extractor,
        "images": pairs.facts,
        "labels": list(pairs.label_names),
    }
    found = Benchmark(summarise(results, settings.suite), facts, failed)
    write_json(output / "results.json", {**vars(found), "cells": results})
    samples = {
        row["title"]: output / Cell(row["name"], 0).folder / SAMPLES
        for row in found.rows
        if row["name"] in SUITES[settings.suite]
    }
    write_report(found, samples, output)
    written = [output / name for name in OUTPUTS if (output / name).exists()]
    record = run_record(
        command.removeprefix("medgen "),
        inputs=[header["dataset"]], outputs=[path for path in written if path.name != "run.json"],
        timings=timings, device=device, seeds=seeds, jobs=runner.jobs, failed=sorted(failed),
    )  # fmt: skip
    write_json(output / "run.json", record)
    return found


def command_line(settings: BenchmarkSettings, methods: Sequence[str], seeds: int, jobs: int) -> str:
    """The command that repeats a benchmark, without its paths and device."""
    budget = f"--steps {settings.steps}"
    if settings.minutes is not None:
        budget = f"--minutes-per-method {settings.minutes:g}"
    features = Path(settings.features).name  # a path may name a patient
    chosen = f" --methods {','.join(methods)}" if methods else ""
    return (
        f"medgen benchmark synthesis DATASET -o OUT --suite {settings.suite}{chosen} "
        f"--seeds {seeds} {budget} --size {settings.size} --samples {settings.samples} "
        f"--segmentation-steps {settings.segmentation_steps} --features {features} "
        f"--jobs {jobs}"
    )


def _run_all(
    cells: Sequence[Cell],
    dataset: Path,
    output: Path,
    settings: BenchmarkSettings,
    device: str,
    runner: Runner,
    progress: Progress | None,
) -> dict[str, str]:
    """Run what is not done yet; returns the message of each cell that failed."""
    left = [cell for cell in cells if stored(output / cell.folder) is None]
    if len(left) < len(cells):
        logger.info("%d of %d cells are done already", len(cells) - len(left), len(cells))
    threads = max(1, torch.get_num_threads() // max(1, min(runner.jobs, len(left))))
    orders = {
        f"{cell.name}-seed{cell.seed}": (
            str(dataset), str(output / cell.folder), settings, *cell, device, threads
        )
        for cell in left
    }  # fmt: skip
    return run_all(orders, _work, runner, progress)


def _work(order: tuple[Any, ...]) -> None:
    dataset, folder, settings, name, seed, device, threads = order
    run_cell(Path(dataset), Path(folder), settings, name, seed, device=device, threads=threads)


def summarise(results: Sequence[dict[str, Any]], suite: str) -> list[dict[str, Any]]:
    """Rows of the table from the results of cells."""
    titles = BASELINES | {name: one.title for name, one in SUITES[suite].items()}
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        of[result["name"]].append(result)
    real = _by_patient(of[REAL], REAL)
    rows: list[dict[str, Any]] = []
    for name, title in titles.items():
        if not of[name]:
            continue
        arms = (REAL,) if name == REAL else (SYNTHETIC, MIXED)
        rows.append(
            {
                "name": name,
                "title": title,
                "seeds": len(of[name]),
                "metrics": _over_seeds(of[name]),
                "dice": {arm: _dice(_by_patient(of[name], arm), real) for arm in arms},
                "training": _mean_training(of[name]),
            }
        )
    return rows


def _over_seeds(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds of each metric, and what real images get."""
    found: dict[str, Any] = {}
    for metric in METRICS:
        rows = [r["measure"]["metrics"][metric] for r in results if "measure" in r]
        if rows:
            found[metric] = {
                key: float(np.mean([row[key] for row in rows]))
                for key in ("value", "at_floor", "floor", "training")
                if rows[0].get(key) is not None
            }
            found[metric]["sd"] = _deviation([row["value"] for row in rows])
    return found


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _by_patient(results: Sequence[dict[str, Any]], arm: str) -> Array | None:
    """Dice of each test patient, averaged over seeds; None if there is no result."""
    rows = [r["dice"][arm]["per_patient"] for r in results]
    return np.mean(rows, axis=0) if rows else None


def _dice(values: Array | None, real: Array | None) -> dict[str, Any]:
    """Mean over patients with its interval, and the paired difference to real images only."""
    assert values is not None
    mean = bootstrap_interval(values)
    found: dict[str, Any] = {
        "mean": mean.estimate,
        "interval": [mean.low, mean.high],
        "patients": len(values),
    }
    if real is not None and values is not real:
        from scipy.stats import wilcoxon

        difference = values - real
        change = bootstrap_interval(difference)
        found["difference"] = change.estimate
        found["difference_interval"] = [change.low, change.high]
        found["p_value"] = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return found


def _mean_training(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    rows = [r["training"] for r in results if r["training"]]
    keys = rows[0] if rows else ()
    return {key: float(np.mean([row[key] for row in rows])) for key in keys}
