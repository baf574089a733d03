"""``medgen evaluate anomaly`` and ``medgen benchmark anomaly``: models compared on the same cases.

A study names its data, protocols and models (:mod:`~medgen.tasks.anomaly_study`). Each model of
each seed is a cell of its own (:mod:`~medgen.tasks.anomaly_cell`), so an interrupted study goes on
where it was, and cells may run in parallel. Here cells are pooled over cases and seeds, with
intervals from a bootstrap of whole subjects that is drawn once and shared by all rows, so that
differences between methods have intervals too.

The numbers depend on nothing but the study, the data, the weights and the seed; how long it took
is kept apart from them, in ``run.json`` and the last table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medgen.report.anomaly import write_report
from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.anomaly_cases import Case
from medgen.tasks.anomaly_cell import TIMINGS, complete, run_cell
from medgen.tasks.anomaly_checks import check_models
from medgen.tasks.anomaly_study import (
    Study,
    Unit,
    study_cases,
    study_variants,
    units,
)
from medgen.tasks.anomaly_summary import summarise
from medgen.tasks.benchmark_runs import (
    IN_TURN,
    RUNS,
    SETTINGS,
    Runner,
    claim,
    device_name,
    run_all,
    stored,
)
from medgen.tasks.detect_files import write_json
from medgen.tasks.running import Progress

RESULTS, CASES, TABLE, PAGE, RUN = (
    "evaluation.json", "cases.tsv", "table.md", "index.html", "run.json",
)  # fmt: skip
OUTPUTS = (RESULTS, CASES, TABLE, PAGE, RUN)


@dataclass(frozen=True)
class Comparison:
    """What a study found.

    Attributes:
        result: The contents of ``evaluation.json``.
        failed: Message of each cell that did not work.
    """

    result: dict[str, Any]
    failed: dict[str, str]


def compare(
    study: Study,
    output: Path,
    *,
    command: str,
    config: Path | None = None,
    methods: Sequence[str] = (),
    seeds: int = 1,
    steps: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    runner: Runner = IN_TURN,
    resume: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Evaluate all models of a study, training its methods first, and write tables and pictures.

    Args:
        study: What is compared.
        output: Folder for everything; with ``resume`` that of an interrupted run.
        command: What to record in ``run.json``; without paths.
        config: The study's file, whose hash is recorded.
        methods: Which of its methods are trained; empty: all.
        seeds: Trainings of each method.
        steps: Length of each training, instead of what the study says.
        minutes: Or its length in minutes, the same for all.
        device: Where to compute.
        runner: Of the cells; :func:`medgen.batch.cells.runner` makes one for several at a time.
        resume: Go on, with the same study; there may be more methods and seeds.
        progress: Called with (done, total) after each cell.

    Raises:
        InputError: The study does not fit its data, or the folder is used.
        LeakageError: A subject is in two sets.
    """
    import torch

    from medgen.devices import resolve_device

    device = resolve_device(device)
    cases, wanted = study_cases(study), study_variants(study)
    cells = units(study, methods, seeds)
    check_models(study, cells, cases, steps=steps, minutes=minutes)  # now, not in an hour
    header = {
        "study": _unchanging(study),
        "budget": {"steps": steps, "minutes": minutes},
        "cases": {name: _fingerprint(members) for name, members in cases.items()},
    }
    claim(output, header, resume)
    left = [cell for cell in cells if not complete(output / RUNS / cell.label)]
    threads = max(1, torch.get_num_threads() // max(1, min(runner.jobs, len(left))))
    orders = {
        cell.label: (study, cell, output / RUNS / cell.label, device, threads, steps, minutes)
        for cell in left
    }
    timings: dict[str, float] = {}
    with timed(timings, "cells"):
        failed = run_all(orders, run_cell, runner, progress)
    with timed(timings, "tables"):
        done = [cell for cell in cells if complete(output / RUNS / cell.label)]
        if not done:
            _withdraw(output, cells, resume)
        result, drawn = summarise(study, done, output, wanted, cases)
        result |= {"command": command, "failed": failed}
        write_json(output / RESULTS, result)
        (output / CASES).write_text(case_table(done, output), encoding="utf-8")
        cost = _cost(done, output, device)
        write_report(result, cost, drawn, output, table=TABLE, page=PAGE)
    written = [output / name for name in OUTPUTS if (output / name).exists() and name != RUN]
    record = run_record(
        command,
        inputs=[] if config is None else [fingerprint(config)],
        outputs=written,
        timings=timings,
        device=device_name(device),
        jobs=runner.jobs,
        seed=study.seed,
        cost=cost,
        failed=sorted(failed),
    )
    write_json(output / RUN, record)
    return Comparison(result, failed)


def _withdraw(output: Path, cells: Sequence[Unit], resume: bool) -> None:
    """Leave no folder behind of a study in which nothing could be done, unless it was there."""
    trained = any((output / RUNS / cell.label / "training").exists() for cell in cells)
    if not (resume or trained):
        shutil.rmtree(output / RUNS, ignore_errors=True)
        (output / SETTINGS).unlink(missing_ok=True)
        with suppress(OSError):
            output.rmdir()  # only if it is empty


def _unchanging(study: Study) -> dict[str, Any]:
    """The settings that all cells share; methods and models may be added later."""
    values = study.model_dump(mode="json", exclude={"methods", "models", "name", "pictures"})
    values.pop("root")  # the cases' hashes say what lies there
    return values


def _fingerprint(cases: Sequence[Case]) -> list[Any]:
    """What the cases of a set are, by name and contents."""
    return [
        [case.name, case.group, None if case.image is None else fingerprint(case.image)["sha256"],
         None if case.mask is None else fingerprint(case.mask)["sha256"]]
        for case in cases
    ]  # fmt: skip


def _cost(done: Sequence[Unit], output: Path, device: str) -> list[dict[str, Any]]:
    """What each model took; not part of the result, as it differs from run to run."""
    found: dict[str, list[dict[str, Any]]] = {}
    memory: dict[str, float | None] = {}
    for unit in done:
        folder = output / RUNS / unit.label
        timings = json.loads((folder / TIMINGS).read_text(encoding="utf-8"))
        found.setdefault(unit.name, []).append(timings)
        memory.setdefault(unit.name, (stored(folder) or {}).get("memory_gb"))
    return [
        {
            "name": name,
            "seconds_per_case": float(np.mean([t["seconds_per_case"] for t in own])),
            "training_seconds": None
            if own[0]["training_seconds"] is None
            else float(np.mean([t["training_seconds"] for t in own])),
            "memory_gb": memory[name],
            "device": device_name(device),
        }
        for name, own in found.items()
    ]


COLUMNS = ("abnormal", "scan_score", "voxels", "abnormal_voxels", "abnormal_voxels_outside",
           "auprc", "auroc", "best_dice", "dice", "false_findings", "false_volume_mm3")  # fmt: skip


def case_table(done: Sequence[Unit], output: Path) -> str:
    """A tab-separated line per model, seed, protocol and case; ``n/a`` where undefined, and why."""
    lines = ["\t".join(("model", "seed", "protocol", "set", "case", "subject", *COLUMNS,
                        "undefined"))]  # fmt: skip
    for unit in done:
        result = stored(output / RUNS / unit.label) or {}
        for name, by_variant in result.get("sets", {}).items():
            for variant, rows in by_variant.items():
                for row in rows:
                    why = "; ".join(f"{key}: {reason}" for key, reason in row["undefined"].items())
                    cells = [_cell(row.get(column)) for column in COLUMNS]
                    lines.append("\t".join((unit.name, str(unit.seed), variant, name, row["name"],
                                            row["subject"], *cells, why)))  # fmt: skip
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
