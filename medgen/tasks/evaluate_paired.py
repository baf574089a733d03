"""``medgen evaluate paired``: how near results are to their references, subject by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import GeometryError, InputError
from medgen.io import read
from medgen.metrics.anomaly import bootstrap_interval
from medgen.metrics.paired import MEASURES, compare, paired_test
from medgen.report.paired import Trio, markdown, trio, write_page
from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.detect_files import write_json
from medgen.tasks.output_folder import output_folder, refuse_inside
from medgen.tasks.paired_files import Case, cases, partners
from medgen.volume import Geometry, Volume

RESULT, SUBJECTS, TABLE, PAGE, RUN = (
    "evaluation.json", "subjects.tsv", "table.md", "report.html", "run.json",
)  # fmt: skip
NAMES = (RESULT, SUBJECTS, TABLE, PAGE, RUN)
PERCENTILES = (1, 99)  # of the image, which --rescale makes 0 and 1
SHOWN = 6  # subjects with the largest errors that the page shows of each method


@dataclass(frozen=True)
class Options:
    """How images are compared.

    Attributes:
        mask: Compare inside this mask (a file, or a folder of files named like the references).
        data_range: Largest minus smallest possible value. None: 255 for pictures of 8 bit, else
            that of each reference.
        rescale: First make the 1st and 99th percentile of each image 0 and 1, for results whose
            values mean nothing by themselves.
        only: Pattern of the names of result files.
        group_pattern: Regular expression whose first (...) is the patient in a file's name.
        seed: Of the bootstrap.
    """

    mask: Path | None = None
    data_range: float | None = None
    rescale: bool = False
    only: str | None = None
    group_pattern: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.data_range is not None and not self.data_range > 0:
            raise InputError(f"--data-range must be positive, got {self.data_range}")
        if self.data_range is not None and self.rescale:
            raise InputError("--rescale makes the data range 1, so --data-range has no meaning")


def evaluate_paired(
    reference: Path,
    results: Mapping[str, Path],
    output: Path | None = None,
    *,
    options: Options | None = None,
    overwrite: bool = False,
    command: str = "evaluate paired",
) -> dict[str, Any]:
    """Compare the results of one or several methods with their references.

    Args:
        reference: One image, or a folder of them.
        results: Name of each method and its result: one image, or a folder of them.
        output: Folder into which :data:`NAMES` are written; None writes nothing.
        options: How images are compared.
        overwrite: Replace an earlier evaluation in ``output``.
        command: What to record in ``run.json``; without paths.

    Returns:
        The contents of ``evaluation.json``: ``methods`` (of each, a summary per measure: mean,
        standard deviation, median, 95 % bootstrap interval over patients, and how many are
        undefined and why), ``subjects`` (a row per subject and method), ``tests`` (Wilcoxon's
        between every two methods), ``region``, ``notes``.

    Raises:
        InputError: Nothing to compare, or nothing that can be.
        GeometryError: A result or a mask lies on another grid than its reference.
    """
    wish, timings = options or Options(), dict[str, float]()
    given = cases(reference, wish.mask, wish.group_pattern)
    references = {case.name: case.reference for case in given}
    found = {n: partners(references, path, "result", wish.only) for n, path in results.items()}
    notes = _missing(given, found)
    if output is None:
        return _evaluate(given, found, wish, notes)[0]
    for path in (reference, *results.values()):
        refuse_inside(output, path)
    with output_folder(output, NAMES, overwrite=overwrite) as draft:
        with timed(timings, "measure"):
            result, pictures = _evaluate(given, found, wish, notes)
        with timed(timings, "write"):
            _write(result, pictures, draft)
        inputs = [reference, *results.values(), *([wish.mask] if wish.mask else [])]
        record = run_record(
            command,
            inputs=[fingerprint(path) for path in inputs],
            outputs=[draft / name for name in NAMES if name != RUN],
            timings=timings,
            seed=wish.seed,
            notes=notes,
        )
        write_json(draft / RUN, record)
    return result


def _missing(given: Sequence[Case], found: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """A sentence for each method that lacks subjects.

    Raises:
        InputError: A method has none at all.
    """
    notes = []
    for method, files in found.items():
        lacking = [case.name for case in given if case.name not in files]
        if len(lacking) == len(given):
            msg = f"{method} has no image named like a reference, such as {given[0].name}"
            raise InputError(msg, "A result is named like its reference, or begins with its name.")
        if lacking:
            share = f"{len(lacking)} of {len(given)} subjects"
            notes.append(f"{method} lacks {share}, which count for nothing: {', '.join(lacking)}")
    return notes


def _evaluate(
    given: Sequence[Case],
    found: Mapping[str, Mapping[str, Path]],
    wish: Options,
    notes: Sequence[str],
) -> tuple[dict[str, Any], list[Trio]]:
    rows, pictures = [], list[Trio]()
    for case in given:
        truth = read(case.reference)
        mask = None if case.mask is None else _mask(case, truth)
        for method, files in found.items():
            if case.name not in files:
                continue
            result = read(files[case.name], allow_constant=True)
            _require_grid(case.reference, truth, files[case.name], result)
            row, picture = _row(case, method, truth, result, mask, wish)
            rows.append(row)
            pictures.append(picture)
    if not any(row["voxels"] for row in rows):
        raise InputError(f"the mask {wish.mask} is empty", "Mark the voxels to compare with 1.")
    evaluation = {
        "region": "inside the mask" if wish.mask else "the whole image",
        "rescaled": wish.rescale,
        "measures": {name: unit for name, (unit, _) in MEASURES.items()},
        "methods": {
            method: _summary([row for row in rows if row["method"] == method], wish.seed)
            for method in found
        },
        "tests": _tests(rows, list(found), wish.seed),
        "subjects": rows,
        "notes": list(notes),
    }
    return evaluation, _worst(rows, pictures)


def _mask(case: Case, truth: Volume) -> NDArray[np.bool_]:
    assert case.mask is not None
    mask = read(case.mask, allow_constant=True)
    _require_grid(case.reference, truth, case.mask, mask, channels=False)
    return np.asarray((mask.voxels > 0).any(axis=0))


def _require_grid(
    path: Path, truth: Volume, other_path: Path, other: Volume, channels: bool = True
) -> None:
    if not truth.geometry.same_grid_as(other.geometry):
        msg = f"{other_path.name} lies on another grid than its reference {path.name}:\n"
        msg += f"  reference: {_grid(truth.geometry)}\n  {other_path.name}: {_grid(other.geometry)}"
        raise GeometryError(msg, "Resample one of them to the grid of the other first.")
    if channels and len(truth.voxels) != len(other.voxels):
        counts = f"{len(truth.voxels)} and {len(other.voxels)} channels"
        raise InputError(f"{path.name} and {other_path.name} have {counts}")


def _grid(geometry: Geometry) -> str:
    shape = " x ".join(map(str, geometry.shape))
    spacing = " x ".join(f"{mm:.6g}" for mm in geometry.spacing_mm)
    origin = ", ".join(f"{mm:.6g}" for mm in geometry.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm, axes {geometry.axis_codes}, first at ({origin}) mm"


def _row(
    case: Case, method: str, truth: Volume, result: Volume, mask: NDArray[np.bool_] | None,
    wish: Options,
) -> tuple[dict[str, Any], Trio]:  # fmt: skip
    """The numbers of one pair, and a picture of it."""
    a, b = truth.voxels, result.voxels
    if wish.rescale:
        a, b = _rescaled(a, case.reference), _rescaled(b, Path(method))
    span = 1.0 if wish.rescale else wish.data_range or _data_range(truth)
    measures = compare(a, b, span, mask)
    row = {
        "subject": case.name,
        "group": case.group,
        "method": method,
        "voxels": int(mask.sum()) if mask is not None else int(np.prod(a.shape[1:])),
        "data_range": span,
        **{name: measure.value for name, measure in measures.items()},
        "undefined": {name: m.why for name, m in measures.items() if m.value is None},
    }
    return row, trio(truth.with_voxels(a), b, mask, span, f"{method}: {case.name}")


def _data_range(truth: Volume) -> float:
    if truth.provenance.format not in ("nifti", "dicom") and truth.voxels.dtype == np.uint8:
        return 255.0
    return float(truth.voxels.max()) - float(truth.voxels.min())


def _rescaled(voxels: NDArray[Any], path: Path) -> NDArray[np.float64]:
    low, high = np.percentile(voxels, PERCENTILES)
    if not high > low:
        msg = f"{path.name} cannot be rescaled: nearly all its voxels have the value {low:g}"
        raise InputError(msg, "Leave out --rescale.")
    return (voxels.astype(np.float64) - low) / (high - low)


def _summary(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Of each measure over the subjects of a method."""
    found = {}
    for name in MEASURES:
        defined = [row for row in rows if row[name] is not None]
        values = np.array([row[name] for row in defined], np.float64)
        groups = [row["group"] for row in defined]
        several = len(set(groups)) > 1
        interval = bootstrap_interval(values, subjects=groups, seed=seed) if several else None
        found[name] = {
            "mean": float(values.mean()) if len(values) else None,
            "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            "median": float(np.median(values)) if len(values) else None,
            "interval": None if interval is None else [interval.low, interval.high],
            "subjects": len(values),
            "patients": len(set(groups)),
            "undefined": sorted({row["undefined"][name] for row in rows if row[name] is None}),
        }
    return found


def _tests(rows: Sequence[dict[str, Any]], methods: Sequence[str], seed: int) -> list[Any]:
    """Wilcoxon's test of every two methods and measure, over patients that both have."""
    tests = []
    for first, second in combinations(methods, 2):
        for name in MEASURES:
            a, b = (_by_patient(rows, method, name, (first, second)) for method in (first, second))
            if a:
                found = paired_test(list(a.values()), [b[patient] for patient in a], seed)
                tests.append({"first": first, "second": second, "measure": name, **asdict(found)})
    return tests


def _by_patient(
    rows: Sequence[dict[str, Any]], method: str, name: str, methods: tuple[str, str]
) -> dict[str, float]:
    """Mean of each patient over the subjects for which both methods have a number."""
    both = [
        {row["subject"] for row in rows if row["method"] == one and row[name] is not None}
        for one in methods
    ]
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method and row["subject"] in both[0] & both[1]:
            values.setdefault(row["group"], []).append(row[name])
    return {patient: float(np.mean(found)) for patient, found in values.items()}


def _worst(rows: Sequence[dict[str, Any]], pictures: Sequence[Trio]) -> list[Trio]:
    """Of each method the pictures of the subjects with the largest mean squared errors."""
    chosen = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [n for n, row in enumerate(rows) if row["method"] == method and row["mse"]]
        chosen += sorted(own, key=lambda n: -rows[n]["mse"])[:SHOWN]
    return [pictures[n] for n in chosen]


def _write(result: dict[str, Any], pictures: Sequence[Trio], folder: Path) -> None:
    write_json(folder / RESULT, result)
    (folder / SUBJECTS).write_text(subjects_table(result["subjects"]), encoding="utf-8")
    (folder / TABLE).write_text(markdown(result), encoding="utf-8")
    write_page(result, pictures, folder / PAGE)


def subjects_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A tab-separated line per subject and method; what is undefined is ``n/a`` and says why."""
    columns = ["subject", "group", "method", "voxels", "data_range", *MEASURES, "undefined"]
    lines = ["\t".join(columns)]
    for row in rows:
        why = "; ".join(f"{name}: {reason}" for name, reason in row["undefined"].items())
        cells = {**row, "undefined": why}
        lines.append("\t".join(_cell(cells[column]) for column in columns))
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
