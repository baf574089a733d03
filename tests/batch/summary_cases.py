"""Cohorts to summarise, made from random numbers: the summary needs no run."""

from __future__ import annotations

import random
from typing import Any

from medgen.batch.summary import STATES, Cohort, Column, Row

COLUMNS: list[Column] = [
    {
        "key": "scan_score",
        "label": "Scan score",
        "unit": "",
        "format": ".2f",
        "meaning": "larger is more abnormal",
        "marks": [{"value": 0.62, "label": "1 in 20 healthy scans lies above"}],
        "attention": "high",
    },
    {
        "key": "p_value",
        "label": "p",
        "unit": "",
        "format": ".2g",
        "meaning": "part of the healthy reference scans that score this high or higher",
        "marks": [{"value": 0.05, "label": "p = 0.05"}],
        "attention": "low",
    },
    {
        "key": "findings",
        "label": "Findings",
        "unit": "",
        "format": "d",
        "meaning": "regions above the threshold",
    },
    {
        "key": "largest_ml",
        "label": "Largest",
        "unit": "ml",
        "format": ".2g",
        "meaning": "volume of the largest finding",
    },
]
REASONS = (
    (
        "The series has only {n} slices; the model needs at least 16.",
        "Send the whole series again from the scanner, or choose another one.",
    ),
    ("The pixel data of a slice is damaged.", "Fetch the study again from the archive."),
    (
        "The case took longer than the limit of {n} s.",
        "Allow more with --timeout, or run it by itself.",
    ),
)
FLAGS = (
    "{n} slices were missing and were filled in",
    "the spacing is uneven; resampled",
    "the brain mask touches the edge of the image",
    "the GPU ran out of memory; the CPU was used instead",
)


def cohort(rows: list[Row], **changes: Any) -> Cohort:
    """A finished cohort of these rows."""
    values: dict[str, Any] = {
        "title": "Brain screening, March",
        "pipeline": "brain_screening",
        "description": "Looks for anomalies in the best FLAIR series of each study.",
        "task": "detect-anomalies",
        "model": "brain-mr 1.0.0",
        "input_kind": "dicom",
        "counts": {state: sum(row.state == state for row in rows) for state in STATES},
        "set_aside": [
            {"reason": "localiser", "objects": 612},
            {"reason": "derived: ADC map", "objects": 1204},
            {"reason": "structured report", "objects": 31},
        ],
        "started": "2025-03-02T21:05:11+01:00",
        "finished": "2025-03-03T02:41:50+01:00",
        "seconds": 6.8 * len(rows),
        "versions": {"medgen": "0.1.0", "Python": "3.11.2", "torch": "2.6.0"},
        "columns": COLUMNS,
        "rows": rows,
    }
    return Cohort(**{**values, **changes})


def random_rows(count: int, seed: int = 0) -> list[Row]:
    """Cases as a hospital sees them: most done, some failed or skipped, some flagged."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        case = f"study-{rng.getrandbits(24):06x}/series-{rng.randint(1, 14):03d}-{n:04x}"
        fate = rng.random() if n > 1 else 0.0
        if fate > 0.91:
            reason, hint = rng.choice(REASONS)
            state = "failed" if fate > 0.94 else "skipped"
            rows.append(
                Row(
                    case=case, state=state, reason=reason.format(n=rng.randint(3, 15)), hint=hint,
                    attempts=rng.randint(1, 3), seconds=rng.uniform(0.2, 3),
                )
            )  # fmt: skip
            continue
        score = min(0.99, rng.betavariate(5, 9) + 0.4 * (rng.random() > 0.93))
        findings = max(0, round(12 * (score - 0.4) + rng.gauss(0, 1)))
        flags = tuple(f.format(n=rng.randint(1, 9)) for f in FLAGS if rng.random() > 0.95)
        values = {
            "scan_score": score,
            "p_value": min(1.0, max(0.005, 1.1 - 1.6 * score)),
            "findings": findings,
            "largest_ml": rng.lognormvariate(0, 1.4) if findings else None,
        }
        rows.append(
            Row(
                case=case, state="done", flags=flags, values=values, attempts=1,
                seconds=rng.uniform(3, 9), folder=f"cases/{case}",
                report=f"cases/{case}/report.html", thumbnail=f"cases/{case}/thumbnail.png",
                chosen="The only 3-D FLAIR of the study; the axial T2 has a spacing of 6.5 mm.",
            )
        )  # fmt: skip
    return rows


def three_rows() -> list[Row]:
    """One case of each kind that matters."""
    done, second = random_rows(2)
    reason, hint = REASONS[0]
    failed = Row(
        case="study-77aa01/series-002-0003", state="failed",
        reason=reason.format(n=5), hint=hint, attempts=2, seconds=0.4,
    )  # fmt: skip
    return [done, second, failed]
