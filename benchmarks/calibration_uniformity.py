r"""Whether conformal p-values of real normal images are uniform, as their definition promises.

    python benchmarks/calibration_uniformity.py \
        --cases chest-xray-anomaly=EVALUATION/cases.tsv --cases histology-anomaly=OTHER/cases.tsv \
        --output benchmarks/results/calibration_uniformity.md \
        --picture docs/images/calibration_uniformity.png

`cases.tsv` is what `medgen evaluate anomaly` writes for a set with normal images. Of each person
the highest score counts. The people are halved at random, many times: one half is the reference,
the p-values of the other are looked at. Nothing is fitted; the promise is about the average over
halves.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medgen.scoring.conformal import highest_per_person, p_values

RATES = (0.05, 0.1, 0.2, 0.5)
HALVES = 2000


def scores_of_people(cases: Path, model: str) -> NDArray[np.float64]:
    """The highest score of each person without a finding."""
    with cases.open(encoding="utf-8") as lines:
        rows = [
            row for row in csv.DictReader(lines, delimiter="\t")
            if (row["model"], row["abnormal"], row["set"]) == (model, "False", "test")
        ]  # fmt: skip
    if not rows:
        raise SystemExit(f"{cases} has no normal test images of {model}")
    return highest_per_person([float(r["scan_score"]) for r in rows], [r["subject"] for r in rows])


def halves(scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """P-values ``(halves, people in the other half)``."""
    generator, half = np.random.default_rng(seed), len(scores) // 2
    found = []
    for _ in range(HALVES):
        order = generator.permutation(len(scores))
        found.append(p_values(scores[order[:half]], scores[order[half:]]))
    return np.array(found)


def draw(found: dict[str, NDArray[np.float64]], path: Path) -> None:
    """The share of p-values up to each p, against p."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.2, 4.0), layout="constrained")
    axes.plot((0, 1), (0, 1), color="0.7", label="uniform")
    for name, values in found.items():
        ordered = np.sort(values.ravel())
        axes.step(ordered, np.arange(1, ordered.size + 1) / ordered.size, where="post", label=name)
    axes.set(xlabel="p", ylabel="share of normal people at p or below", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", action="append", required=True, metavar="MODEL=FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    scores = {}
    for given in options.cases:
        model, _, file = given.partition("=")
        scores[model] = scores_of_people(Path(file), model)
    found = {model: halves(values, options.seed) for model, values in scores.items()}
    rows = []
    for model, values in found.items():
        shares = " | ".join(f"{(values <= rate).mean():.3f}" for rate in RATES)
        # One half at a time: halves of the same people are not independent of each other.
        rejected = np.mean([stats.kstest(one, "uniform").pvalue < 0.05 for one in values])
        rows.append(f"| `{model}` | {len(scores[model])} | {shares} | {rejected:.3f} |")
    where = os.path.relpath(options.picture, options.output.parent)
    limits = " | ".join(f"p ≤ {rate:g}" for rate in RATES)
    lines = [
        "# Are p-values of real normal images uniform?", "",
        "`python benchmarks/calibration_uniformity.py --cases MODEL=EVALUATION/cases.tsv ... "
        f"--seed {options.seed} --output FILE --picture PICTURE`", "",
        f"People without a finding that the model never saw, halved at random {HALVES} times: the "
        "share of one half with a p-value up to each limit, the other half being the reference. A "
        "share above its limit by more than the noise of the draws, .005, would break the "
        "promise. Conformal p-values are discrete and err on the safe side: with n people, no "
        "value lies below 1 / (n + 1). Last column: how often a Kolmogorov-Smirnov test at 5 % "
        "calls one half not uniform; above .05, because the values of one half share their "
        "reference.", "",
        f"| model | people | {limits} | KS test rejects |", "|---|---|" + "---|" * (len(RATES) + 1),
        *rows, "",
        f"![Share of normal people at p or below, against p]({where})", "",
    ]  # fmt: skip
    options.output.write_text("\n".join(lines), encoding="utf-8")
    draw(found, options.picture)


if __name__ == "__main__":
    main()
