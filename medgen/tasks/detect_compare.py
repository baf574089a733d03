"""Two models on one scan: what each finds, how far they agree, side by side in one report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.package import ModelPackage, load_package
from medgen.tasks.detect import Detection, detect_anomalies
from medgen.tasks.detect_files import findings_summary, write_files, write_json
from medgen.tasks.output_folder import cannot_write, output_folder
from medgen.tasks.running import Progress
from medgen.volume import Volume

# Voxels whose order is compared; more would not change the second decimal.
MOST_VOXELS = 500_000
REPORT, SUMMARY = "compare.html", "compare.json"


class Names(NamedTuple):
    """How the two models are told apart, in the report and as folders."""

    first: str
    second: str


@dataclass(frozen=True, eq=False)
class Compared:
    """What two models found in one scan.

    Attributes:
        first: What the first found.
        second: What the second found.
        names: How they are told apart.
        agreement: As :func:`agreement` gives it.
    """

    first: Detection
    second: Detection
    names: Names
    agreement: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The contents of ``compare.json``."""
        models = {
            name: findings_summary(found)
            for name, found in zip(self.names, (self.first, self.second), strict=True)
        }
        return {"agreement": self.agreement, "models": models}

    def save(self, folder: str | Path, *, overwrite: bool = False, report: bool = True) -> None:
        """Write the outputs of each model in its folder, and of both, all or nothing.

        Args:
            folder: Made if absent; other files in it are left alone.
            overwrite: Replace the outputs of an earlier run.
            report: Draw reports and pictures.

        Raises:
            InputError: An output exists, or the folder cannot be written.
        """
        names = output_names(self.names)
        with output_folder(Path(folder), names, overwrite=overwrite) as draft:
            self.write(draft, report=report)

    def write(self, folder: Path, *, report: bool = True) -> None:
        """Write ``compare.json``, ``compare.html`` and the models' folders into an existing one.

        Raises:
            InputError: The folder cannot be written.
        """
        from medgen.report.pair import write_pair

        command = f"detect-anomalies INPUT -o OUT --compare {' '.join(self.names)}"
        try:
            for name, found in zip(self.names, (self.first, self.second), strict=True):
                (folder / name).mkdir()
                write_files(found, folder / name, report=report, command=command)
            write_json(folder / SUMMARY, self.summary())
            if report:
                pair: Any = (self.first, self.second)
                write_pair(pair, self.names, self.agreement, folder / REPORT)
        except OSError as error:
            raise cannot_write(folder, error) from error


def output_names(names: Names) -> list[str]:
    """The files and folders of a comparison."""
    return [REPORT, SUMMARY, *names]


def told_apart(first: ModelPackage, second: ModelPackage) -> Names:
    """The models' names, with a number each if they are the same.

    Raises:
        InputError: Both are one model.
    """
    if first.sha256 == second.sha256:
        msg = f"both models are {first.manifest.name} {first.manifest.version}"
        raise InputError(msg, "Compare two different ones; `medgen models list` shows all.")
    a, b = first.manifest.name, second.manifest.name
    return Names(a, b) if a != b else Names(f"{a}-1", f"{b}-2")


def compare_models(
    source: str | Path | Volume,
    models: tuple[str | Path | ModelPackage, str | Path | ModelPackage],
    *,
    device: str = "auto",
    seed: int = 0,
    max_memory_gb: float | None = None,
    frame: int | None = None,
    series: str | None = None,
    progress: Progress | None = None,
) -> Compared:
    """Run two models on one scan, each with its own threshold.

    Args:
        source: As for :func:`~medgen.tasks.detect.detect_anomalies`, as are the others.
        models: Names or folders of two detectors.
        device: Where the networks run.
        seed: Seeds torch.
        max_memory_gb: Refuse scans that would need more.
        frame: Which image of a 4-D file.
        series: Which DICOM series of a folder.
        progress: Called with (done, total) as each network works through the scan.

    Raises:
        InputError: The scan does not fit one of the models, or both are the same.
    """
    one, two = (
        model if isinstance(model, ModelPackage) else load_package(model, "detect-anomalies")
        for model in models
    )
    names = told_apart(one, two)
    settings: dict[str, Any] = {
        "device": device, "seed": seed, "max_memory_gb": max_memory_gb, "progress": progress,
    }  # fmt: skip
    first = detect_anomalies(source, one, frame=frame, series=series, **settings)
    second = detect_anomalies(first.volume, two, **settings)
    return Compared(first, second, names, agreement(first, second))


def agreement(first: Detection, second: Detection) -> dict[str, Any]:
    """How far two detections of one scan agree.

    Returns:
        ``rank_correlation``: Spearman's, of the maps where both looked (None if a map is constant);
        ``dice``: 2 |A and B| / (|A| + |B|) of the findings' voxels (None if there is no finding);
        ``first_findings``, ``second_findings``: how many; ``first_in_second``, ``second_in_first``:
        how many of them touch one of the other.
    """
    together = int((first.mask & second.mask).sum())
    total = int(first.mask.sum()) + int(second.mask.sum())
    return {
        "rank_correlation": _rank_correlation(first, second),
        "dice": 2 * together / total if total else None,
        "first_findings": len(first.findings),
        "second_findings": len(second.findings),
        "first_in_second": _touching(first, second.mask),
        "second_in_first": _touching(second, first.mask),
    }


def _rank_correlation(first: Detection, second: Detection) -> float | None:
    from scipy.stats import rankdata

    where = np.flatnonzero(first.brain_mask & second.brain_mask)
    where = where[:: max(1, where.size // MOST_VOXELS)]
    ranks = [rankdata(one.map.ravel()[where]) for one in (first, second)]
    if where.size < 2 or any(np.ptp(one) == 0 for one in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def _touching(detection: Detection, other: NDArray[np.bool_]) -> int:
    """How many findings share a voxel with a mask."""
    from medgen.scoring.findings import large_components

    labels, _ = large_components(detection.mask, 1)
    return int(np.count_nonzero(np.unique(labels[other & detection.mask])))
