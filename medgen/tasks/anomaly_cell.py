"""One model of one seed in an evaluation of anomaly detection: every case predicted and measured.

Cases are read, predicted, measured and forgotten one after the other. What stays is a row of
numbers per case, exact, and for what pools the cases a tally of scores per subject and the false
findings at every threshold. Thresholds come from the validation set, which is therefore first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medgen.metrics.anomaly import (
    LesionSweep,
    ScoredScan,
    count,
    dice,
    false_positives,
    lesion_sweep,
)
from medgen.metrics.tally import Tally, defined
from medgen.scoring import scan_score
from medgen.scoring.sweep import Sweep
from medgen.tasks.anomaly_cases import Case, Loaded, refuse_known
from medgen.tasks.anomaly_models import Detector, Outputs, detector
from medgen.tasks.anomaly_protocols import Protocol, Variant, scored
from medgen.tasks.anomaly_study import (
    Study,
    Unit,
    study_cases,
    study_variants,
    training_of,
)
from medgen.tasks.benchmark_runs import RESULT, stored, trained
from medgen.tasks.detect_files import write_json
from medgen.tasks.limits import check_scan

if TYPE_CHECKING:
    from medgen.preparation import Prepared
    from medgen.scoring import Scoring
    from medgen.volume import Volume


ARRAYS, TIMINGS = "arrays.npz", "timings.json"
# The free-response curve ends at so many false findings per scan, or beyond this part of the
# region: a longer one is of no use, and slow.
MOST_FALSE_FINDINGS = 10.0
MOST_FALSE_PART = 0.1


@dataclass(eq=False)
class Scores:
    """What is kept of the cases of one set under one protocol.

    Attributes:
        rows: Numbers of each case.
        tallies: Scores of each subject's voxels.
        sweeps: Findings of each case at every threshold, if lesions are counted.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    sweeps: list[LesionSweep] = field(default_factory=list)

    def take(self, group: str, tally: Tally) -> None:
        """Add the voxels of one more case of a subject."""
        earlier = self.tallies.get(group)
        self.tallies[group] = tally if earlier is None else Tally.total([earlier, tally])


@dataclass(frozen=True)
class Threshold:
    """A threshold and who chose it; ``value`` is None if nobody could."""

    value: float | None
    rule: str


def run_cell(order: tuple[Study, Unit, Path, str, int, int | None, float | None]) -> None:
    """Train if need be, then evaluate.

    Args:
        order: The study, the unit, its folder, the device, threads, and steps and minutes of
            training.
    """
    study, unit, folder, device, threads, steps, minutes = order
    import torch

    torch.set_num_threads(threads)
    run = None
    if unit.kind == "method":
        run = folder / "training"
        trained(training_of(study, unit, steps=steps, minutes=minutes), run, device)
    evaluate_unit(study, unit, folder, device=device, run=run)


def evaluate_unit(
    study: Study, unit: Unit, folder: Path, *, device: str, run: Path | None = None
) -> None:
    """Predict and measure all cases; writes ``result.json``, ``arrays.npz`` and timings.

    Raises:
        InputError: A case or the model cannot be used.
        LeakageError: The model was trained or calibrated on one of the subjects.
    """
    cases, wanted = study_cases(study), study_variants(study)
    model = detector(study, unit, run)
    for name, members in cases.items():
        refuse_known(unit.name, model.known, members, name)
    wanted = _with_its_scan_score(wanted, model.shipped)
    looking = _Looking(study, unit, model, device)
    found: dict[str, dict[str, Scores]] = {}
    thresholds: dict[str, Threshold] = {}
    if "validation" in cases:
        found["validation"] = looking.at(cases["validation"], wanted, {})
    for variant in wanted:
        validated = found.get("validation", {}).get(variant.name)
        thresholds[variant.name] = _threshold(study, variant.protocol, model, validated)
    found["test"] = looking.at(cases["test"], wanted, thresholds, sweeps=True)
    if "normals" in cases:
        used = {
            variant.name: _for_normals(thresholds[variant.name], found["test"][variant.name])
            for variant in wanted
        }
        found["normals"] = looking.at(cases["normals"], wanted, used)
    _write(folder, unit, model, found, thresholds, looking)


def _with_its_scan_score(variants: list[Variant], shipped: Scoring | None) -> list[Variant]:
    """``as_shipped`` says of a scan what a user of the package reads; for others it is left out."""
    if shipped is None:
        return [one for one in variants if not one.protocol.shipped]
    own = {"scan_score": shipped.scan_score}
    return [
        one._replace(protocol=one.protocol.model_copy(update=own)) if one.protocol.shipped else one
        for one in variants
    ]


def _threshold(
    study: Study, protocol: Protocol, model: Detector, validation: Scores | None
) -> Threshold:
    """The threshold that the validation set, or the package, gives."""
    if protocol.shipped:
        if model.threshold is None:
            return Threshold(None, "the package is not calibrated")
        return Threshold(model.threshold, "calibrated threshold of the package")
    if validation is None or not validation.tallies:
        return Threshold(None, "no validation set with known voxels")
    counts = Tally.total(list(validation.tallies.values())).counts()
    scans = len(validation.rows)
    if counts.true.size and counts.true[-1]:
        best = counts.best_dice()
        return Threshold(best.threshold, f"best Dice on {scans} validation cases")
    allowed = np.flatnonzero(counts.false <= study.false_positive_rate * counts.false[-1])
    rule = f"{study.false_positive_rate:.2g} of the voxels of {scans} normal validation cases"
    if not allowed.size:
        return Threshold(float(np.nextafter(counts.levels[0], np.float32(np.inf))), rule)
    return Threshold(float(counts.levels[allowed[-1]]), rule)


def _for_normals(threshold: Threshold, test: Scores) -> Threshold:
    """Without a threshold from elsewhere, that of the best Dice on the test set."""
    if threshold.value is not None or not test.tallies:
        return threshold
    best, why = defined(
        lambda: Tally.total(list(test.tallies.values())).counts().best_dice().threshold
    )
    return Threshold(best, "best Dice on the test set (optimistic)" if best is not None else why)


@dataclass(eq=False)
class _Looking:
    """A model looks at cases, one in memory at a time."""

    study: Study
    unit: Unit
    model: Detector
    device: str
    seconds: list[float] = field(default_factory=list)
    memory_gb: float | None = None
    pictures: list[dict[str, Any]] = field(default_factory=list)

    def at(
        self,
        cases: Sequence[Case],
        variants: Sequence[Variant],
        thresholds: dict[str, Threshold],
        *,
        sweeps: bool = False,
    ) -> dict[str, Scores]:
        """Predict every case once, and measure it under every protocol."""
        found = {variant.name: Scores() for variant in variants}
        for case in cases:
            loaded = case.load()
            prepared, region = self.prepared(loaded)
            began = time.perf_counter()
            outputs = {
                voxels: self.model.outputs(prepared, device=self.device, voxels=voxels)
                for voxels in self.kinds(variants)
            }
            self.seconds.append(time.perf_counter() - began)
            if self.memory_gb is None:
                self.memory_gb = self.model.memory_gb(prepared)
            for number, variant in enumerate(variants):
                scores = self.scores(prepared, outputs, variant.protocol)
                level = thresholds.get(variant.name, Threshold(None, "")).value
                seen = _Seen(case, loaded, scores, region, variant.protocol)
                smallest = self.smallest_mm3(variant.protocol)
                row = seen.row(level, smallest)
                found[variant.name].rows.append(row)
                if seen.truth is not None:
                    found[variant.name].take(case.group, Tally.of(scores, seen.truth, region))
                    if sweeps:
                        found[variant.name].sweeps.append(seen.sweep(smallest, len(cases)))
                if sweeps and number == 0:
                    self.keep_picture(case, loaded, scores, abnormal=row["abnormal"])
        return found

    def smallest_mm3(self, protocol: Protocol) -> float:
        """Volume below which a region is no finding; of a package as shipped, its own."""
        if protocol.shipped and self.model.shipped is not None:
            return self.model.shipped.minimum_volume_mm3
        return self.study.minimum_finding_mm3

    def kinds(self, variants: Sequence[Variant]) -> list[bool]:
        """Networks say one thing; brightness differs for voxels and for whole images."""
        if self.model.network is not None:
            return [True]
        return sorted({variant.protocol.voxels for variant in variants})

    def scores(
        self, prepared: Prepared, outputs: dict[bool, Outputs], protocol: Protocol
    ) -> NDArray[np.float32]:
        """The map under one protocol."""
        said = outputs.get(protocol.voxels) or next(iter(outputs.values()))
        return scored(
            prepared, said, protocol, evidence=self.unit.evidence, shipped=self.model.shipped
        )

    def prepared(self, loaded: Loaded) -> tuple[Prepared, NDArray[np.bool_]]:
        """The scan for this model, and the region that all models are measured in."""
        if self.model.manifest is not None:
            check_scan(loaded.volume, self.model.manifest)
        common = self.study.preparation.apply(loaded.volume, loaded.region)
        region = common.source_mask
        if self.model.preparation == self.study.preparation:
            return common, region
        return self.model.preparation.apply(loaded.volume, region), region

    def keep_picture(
        self, case: Case, loaded: Loaded, scores: NDArray[np.float32], *, abnormal: bool | None
    ) -> None:
        """The slice with most of the lesion, of the first abnormal cases."""
        if len(self.pictures) < self.study.pictures and abnormal:
            self.pictures.append(
                {"name": case.name, **_slices(loaded.volume, loaded.truth, scores)}
            )


@dataclass(frozen=True, eq=False)
class _Seen:
    """A case with its map."""

    case: Case
    loaded: Loaded
    scores: NDArray[np.float32]
    region: NDArray[np.bool_]
    protocol: Protocol

    @property
    def truth(self) -> NDArray[np.bool_] | None:
        """The abnormal voxels, where the protocol asks for them and they are known."""
        return self.loaded.truth if self.protocol.voxels else None

    @property
    def voxel_mm3(self) -> float:
        return self.loaded.volume.geometry.voxel_volume_mm3

    def row(self, threshold: float | None, minimum_mm3: float) -> dict[str, Any]:
        """The numbers of this case; what is undefined is None and says why."""
        abnormal = self.case.abnormal
        if abnormal is None and self.loaded.truth is not None:
            abnormal = bool(self.loaded.truth.any())
        row: dict[str, Any] = {
            "name": self.case.name,
            "subject": self.case.group,
            "abnormal": abnormal,
            "scan_score": scan_score(
                self.scores, self.region, self.voxel_mm3, self.protocol.scan_score
            ),
            "undefined": {},
        }
        if self.truth is None:
            return row
        counts = count(self.scores, self.truth, self.region)
        inside = int((self.truth & self.region).sum())
        row["voxels"] = int(self.region.sum())
        row["abnormal_voxels"] = inside
        row["abnormal_voxels_outside"] = int(self.truth.sum()) - inside
        for name, metric in (
            ("auprc", lambda: counts.average_precision().value),
            ("auroc", counts.auroc),
            ("best_dice", lambda: counts.best_dice().value),
        ):
            row[name], why = defined(metric)
            if why:
                row["undefined"][name] = why
        if threshold is not None:
            found = (self.scores >= threshold) & self.region
            wrong = false_positives(found, self.loaded.truth, self.voxel_mm3, minimum_mm3)
            row["dice"] = dice(found, self.truth, self.region)
            row["overlap"] = [int((found & self.truth).sum()), int((found & ~self.truth).sum()),
                              inside]  # fmt: skip
            row["false_findings"] = wrong.findings
            row["false_volume_mm3"] = wrong.volume_mm3
        return row

    def sweep(self, minimum_mm3: float, scans: int) -> LesionSweep:
        """Its part of the free-response curve."""
        assert self.truth is not None
        found = lesion_sweep(
            ScoredScan(self.scores, self.truth, self.region, self.voxel_mm3),
            minimum_volume_mm3=minimum_mm3,
            most_findings=MOST_FALSE_FINDINGS * scans,
            most_voxels=MOST_FALSE_PART * scans * int(self.region.sum()),
        )
        return LesionSweep(_thinned(found.sweep), found.lesion_volumes_mm3)


def _thinned(sweep: Sweep) -> Sweep:
    """Only levels at which something happens: a false finding comes or goes, or a lesion does.

    What is left out cannot change a sensitivity at a number of false findings.
    """
    if not sweep.levels.size:
        return sweep
    kept = np.diff(sweep.false_findings, prepend=0) != 0
    kept |= np.isin(sweep.levels, sweep.changed_at)
    kept[-1] = True
    return replace(
        sweep,
        levels=sweep.levels[kept],
        false_findings=sweep.false_findings[kept],
        false_voxels=sweep.false_voxels[kept],
    )


def _slices(
    volume: Volume, truth: NDArray[np.bool_] | None, scores: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Upright pictures of one slice: ``image`` 0..1, ``truth`` and ``map``, each rows x columns."""
    from medgen.report.frame import build_frame, cut, grey_window

    frame = build_frame(volume.geometry, volume.provenance)
    plane = frame.planes[0]
    image = frame.place(volume.voxels.astype(np.float32).mean(axis=0))
    placed = frame.place(scores)
    lesion = frame.place(np.zeros(scores.shape, bool) if truth is None else truth)
    weight = (lesion if lesion.any() else placed).sum(axis=(plane.across, plane.down))
    index = int(weight.argmax())
    low, high = grey_window(image)
    return {
        "image": ((cut(image, plane, index) - low) / (high - low)).clip(0, 1).astype(np.float16),
        "truth": cut(lesion, plane, index),
        "map": cut(placed, plane, index).astype(np.float32),
    }


def _write(
    folder: Path,
    unit: Unit,
    model: Detector,
    found: dict[str, dict[str, Scores]],
    thresholds: dict[str, Threshold],
    looking: _Looking,
) -> None:
    """What the tables are made of; ``result.json`` is last, as it says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {}
    for number, scores in enumerate(found["test"].values()):
        for place, group in enumerate(sorted(scores.tallies)):
            tally = scores.tallies[group]
            key = f"{number}/tally/{place}"
            arrays |= {f"{key}/levels": tally.levels, f"{key}/true": tally.true,
                       f"{key}/false": tally.false, f"{key}/overlap": tally.overlap,
                       f"{key}/lesions": np.array(tally.lesions)}  # fmt: skip
        for place, one in enumerate(scores.sweeps):
            key, own = f"{number}/sweep/{place}", one.sweep
            arrays |= {f"{key}/levels": own.levels, f"{key}/findings": own.false_findings,
                       f"{key}/voxels": own.false_voxels, f"{key}/changed_at": own.changed_at,
                       f"{key}/changed": own.changed, f"{key}/steps": own.steps,
                       f"{key}/complete": np.array(own.complete),
                       f"{key}/volumes": one.lesion_volumes_mm3}  # fmt: skip
    for place, picture in enumerate(looking.pictures):
        arrays |= {f"picture/{place}/{k}": picture[k] for k in ("image", "truth", "map")}
    np.savez_compressed(folder / ARRAYS, **arrays)  # type: ignore[arg-type]
    memory = looking.memory_gb
    timings = {
        "seconds_per_case": float(np.median(looking.seconds)),
        "cases": len(looking.seconds),
        "training_seconds": model.facts.get("training", {}).get("seconds"),
    }
    write_json(folder / TIMINGS, timings)
    facts = dict(model.facts)
    training = {k: v for k, v in facts.pop("training", {}).items() if k != "seconds"}
    result = {
        "name": unit.name,
        "seed": unit.seed,
        "kind": unit.kind,
        "evidence": unit.evidence,
        "facts": facts | ({"training": training} if training else {}),
        "memory_gb": None if memory is None else round(memory, 3),
        "variants": list(found["test"]),
        "groups": {name: sorted(scores.tallies) for name, scores in found["test"].items()},
        "pictures": [picture["name"] for picture in looking.pictures],
        "thresholds": {name: vars(one) for name, one in thresholds.items()},
        "sets": {
            name: {variant: scores.rows for variant, scores in by_variant.items()}
            for name, by_variant in found.items()
        },
    }
    write_json(folder / RESULT, result)


def complete(folder: Path) -> bool:
    """Whether a cell is done, and what it left can be read."""
    if stored(folder) is None or not (folder / TIMINGS).is_file():
        return False
    try:
        with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
            return arrays.zip.testzip() is None
    except (OSError, ValueError, BadZipFile):
        return False


def read_scores(folder: Path, result: dict[str, Any]) -> dict[str, Scores]:
    """What :func:`evaluate_unit` kept of the test set, by protocol."""
    found: dict[str, Scores] = {}
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        for number, name in enumerate(result["variants"]):
            rows = result["sets"]["test"][name]
            tallies = {
                group: _read_tally(arrays, f"{number}/tally/{place}")
                for place, group in enumerate(result["groups"][name])
            }
            sweeps: list[LesionSweep] = []
            while (key := f"{number}/sweep/{len(sweeps)}") + "/levels" in arrays:
                sweeps.append(LesionSweep(_read_sweep(arrays, key), arrays[f"{key}/volumes"]))
            found[name] = Scores(rows, tallies, sweeps)
    return found


def _read_tally(arrays: Mapping[str, Any], key: str) -> Tally:
    return Tally(
        levels=arrays[f"{key}/levels"],
        true=arrays[f"{key}/true"],
        false=arrays[f"{key}/false"],
        overlap=arrays[f"{key}/overlap"],
        lesions=int(arrays[f"{key}/lesions"]),
    )


def _read_sweep(arrays: Mapping[str, Any], key: str) -> Sweep:
    return Sweep(
        levels=arrays[f"{key}/levels"],
        false_findings=arrays[f"{key}/findings"],
        false_voxels=arrays[f"{key}/voxels"],
        changed_at=arrays[f"{key}/changed_at"],
        changed=arrays[f"{key}/changed"],
        steps=arrays[f"{key}/steps"],
        lesions=len(arrays[f"{key}/volumes"]),
        complete=bool(arrays[f"{key}/complete"]),
    )


def read_pictures(folder: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The slices that were kept: ``name``, ``image``, ``truth`` and ``map``."""
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        return [
            {"name": name, **{k: arrays[f"picture/{n}/{k}"] for k in ("image", "truth", "map")}}
            for n, name in enumerate(result["pictures"])
        ]
