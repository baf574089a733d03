"""Metrics, each with its definition and unit. Importing this imports no torch.

:mod:`medgen.metrics.anomaly` measures anomaly maps; its names are offered here too.
:mod:`medgen.metrics.tally` does so for many scans, of which one is in memory at a time.
:mod:`medgen.metrics.synthesis` compares sets of features of real and synthetic images,
:mod:`medgen.metrics.similarity` batches of pairs of images (with torch),
:mod:`medgen.metrics.paired` a result with its reference, also inside a mask only.
"""

from medgen.metrics.anomaly import (
    SIZE_EDGES_MM3,
    TRUE_SHARE,
    AveragePrecision,
    BestDice,
    Counts,
    FalsePositives,
    Froc,
    Interval,
    LesionSweep,
    ScoredScan,
    auroc,
    average_precision,
    best_dice,
    bootstrap_interval,
    count,
    dice,
    false_positives,
    froc,
    froc_of,
    lesion_sweep,
)
from medgen.metrics.tally import Tally, aupro

__all__ = [
    "SIZE_EDGES_MM3",
    "TRUE_SHARE",
    "AveragePrecision",
    "BestDice",
    "Counts",
    "FalsePositives",
    "Froc",
    "Interval",
    "LesionSweep",
    "ScoredScan",
    "Tally",
    "aupro",
    "auroc",
    "average_precision",
    "best_dice",
    "bootstrap_interval",
    "count",
    "dice",
    "false_positives",
    "froc",
    "froc_of",
    "lesion_sweep",
]
