"""Compare a batch of scans with the normal scans that a model was calibrated on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.errors import InputError
from medgen.package import ModelPackage, load_package
from medgen.run_record import run_record
from medgen.tasks.detect_files import input_fingerprint, write_json
from medgen.tasks.normal_scans import Notes, find_scans, refuse_known, run_over
from medgen.tasks.output_folder import cannot_write, output_folder
from medgen.tasks.running import Progress

if TYPE_CHECKING:
    from medgen.scoring import Calibration
    from medgen.scoring.conformal import Drift

NAMES = ("drift.tsv", "drift.json", "drift.png", "run.json")


@dataclass(frozen=True)
class Row:
    """One scan of the batch: its name, whose it is, its score, p-value and number of findings."""

    scan: str
    person: str
    score: float
    p_value: float
    findings: int


@dataclass(frozen=True, eq=False)
class DriftReport:
    """A batch beside the reference of a model.

    Attributes:
        drift: The comparison, one score for each person, of the kind that the reference holds.
        rows: Every scan, in the order of their names.
        package: The model.
        skipped: Name of each scan that could not be used, and why.
        fallbacks: What was done otherwise than wished.
        inputs: What was looked at, for the record.
        device: Where the network ran.
    """

    drift: Drift
    rows: list[Row]
    package: ModelPackage
    skipped: dict[str, str] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    inputs: Sequence[Mapping[str, Any]] = ()
    device: str = "cpu"

    @property
    def _calibration(self) -> Calibration:
        assert self.package.calibration is not None  # drift_check refuses models without
        return self.package.calibration

    @property
    def people_with_findings(self) -> int:
        """How many people show a finding at the model's threshold."""
        return len({row.person for row in self.rows if row.findings})

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        found = self.drift
        if found.verdict == "drift":
            way = "higher" if found.auroc > 0.5 else "lower"
            start = f"Drift: the batch scores {way} than the reference"
            start += "" if abs(found.auroc - 0.5) >= 0.05 else ", or spreads differently"
        elif found.verdict == "no drift seen":
            start = "No drift seen"
        else:
            start = "Too few scans to tell whether there is drift"
        alarms = (
            f"{found.alarms} of {found.batch} are at p <= {found.rate:g}; of normal people "
            f"{found.rate * found.batch:.2g} or fewer would be expected"
        )
        if found.alarms_p is None:
            needed = math.ceil(1 / found.rate) - 1
            alarms = (
                f"Nobody can be at p <= {found.rate:g}: that takes a reference of {needed} normal "
                f"people, and it has {found.reference}"
            )
        return (
            f"{start} (p = {found.p_value:.2g}). A person of the batch scores higher than a "
            f"reference one with a probability of {found.auroc:.2f} (0.5 if they are alike). "
            f"{alarms}. {self._findings()}"
            + (" More disease in the batch is drift too." if found.verdict == "drift" else "")
            + (" The reference was drawn, not acquired." if self._calibration.drawn else "")
        )

    def _findings(self) -> str:
        rate = self._calibration.target_false_positive_rate
        promise = (
            "" if rate is None else f"; the threshold promises at most {100 * rate:.3g} % of normal"
        )
        return f"{self.people_with_findings} show a finding{promise}."

    def summary(self) -> dict[str, Any]:
        """The contents of ``drift.json``."""
        return {
            "verdict": self.drift.verdict,
            "sentence": self.sentence,
            "p_value": self.drift.p_value,
            **asdict(self.drift),
            "people_with_findings": self.people_with_findings,
            "target_false_positive_rate": self._calibration.target_false_positive_rate,
            "model": f"{self.package.manifest.name} {self.package.manifest.version}",
            "model_sha256": self.package.sha256,
            "scans": [asdict(row) for row in self.rows],
            "skipped": self.skipped,
        }

    def save(self, folder: str | Path, *, overwrite: bool = False, command: str = "") -> None:
        """Write ``drift.tsv``, ``drift.json``, ``drift.png`` and ``run.json``, all or nothing.

        Raises:
            InputError: One exists, or the folder cannot be written.
        """
        folder = Path(folder)
        with output_folder(folder, NAMES, overwrite=overwrite) as draft:
            try:
                self._write(draft, command)
            except OSError as error:
                raise cannot_write(folder, error) from error

    def _write(self, folder: Path, command: str) -> None:
        from medgen.report.calibration import draw_drift

        lines = ["scan\tperson\tscore\tp_value\tfindings"]
        for row in self.rows:
            numbers = f"{row.score:.6g}\t{row.p_value:.6g}\t{row.findings}"
            lines.append(f"{row.scan}\t{row.person}\t{numbers}")
        (folder / "drift.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json(folder / "drift.json", self.summary())
        title = f"{self.drift.verdict}, p = {self.drift.p_value:.2g}"
        draw_drift(
            self._calibration.scan_scores, _scores(self._calibration, self.rows), self.drift,
            folder / "drift.png", title,
        )  # fmt: skip
        record = run_record(
            command,
            inputs=self.inputs,
            outputs=[folder / name for name in NAMES[:-1]],
            timings={},
            model={
                "name": self.package.manifest.name,
                "version": self.package.manifest.version,
                "sha256": self.package.sha256,
            },
            device=self.device,
            fallbacks=self.fallbacks,
        )
        write_json(folder / "run.json", record)


def drift_check(
    batch: str | Path,
    model: str | Path | ModelPackage,
    *,
    group_pattern: str | None = None,
    rate: float = 0.05,
    level: float | None = None,
    device: str = "auto",
    max_memory_gb: float | None = None,
    progress: Progress | None = None,
) -> DriftReport:
    """Score every scan of a folder, and compare the scores with those of the normal scans.

    Args:
        batch: Folder of scans.
        model: Name or folder of a calibrated detector, or one that is loaded.
        group_pattern: Regular expression whose first (...) is the person in a file's name.
        rate: Conformal p-value that is an alarm.
        level: Chance of calling drift where there is none; 0.01 if None.
        device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
        max_memory_gb: Scans that would need more are skipped.
        progress: Called with (done, total) scans.

    Raises:
        InputError: There are no scans, or the model was not calibrated on scans of this kind.
        LeakageError: It was calibrated on one of them, or two are the same image.
    """
    from medgen.scoring import find
    from medgen.scoring.conformal import DRIFT_LEVEL, drift

    package = model if isinstance(model, ModelPackage) else load_package(model, "detect-anomalies")
    calibration = package.calibration
    if calibration is None:
        msg = (
            f"model {package.manifest.name!r} was not calibrated: there is nothing to compare with"
        )
        raise InputError(msg, "Calibrate it first: medgen calibrate --controls FOLDER -o PACKAGE.")
    scans = find_scans(Path(batch), group_pattern)
    parent = package.manifest.parent
    refuse_known(scans, () if parent is None else parent.hashed_ids, "calibrated on")
    notes, rows, inputs = Notes(), [], []
    for scan, volume, maps in run_over(
        scans, package, notes, device=device, max_memory_gb=max_memory_gb, progress=progress
    ):
        if volume.spatial_dims != calibration.spatial_dims:
            _skip_other_kind(notes, scan.name, calibration)
            continue
        findings = find(
            maps.map, volume.geometry, calibration.threshold, maps.brain_mask,
            calibration.minimum_volume_mm3,
        )[1]  # fmt: skip
        p_value = calibration.p_value(maps.score)
        rows.append(Row(scan.name, scan.person, maps.score, p_value, len(findings)))
        inputs += [input_fingerprint(source) for source in volume.provenance.sources]
    if not rows:
        reason = next(iter(notes.skipped.values()))
        raise InputError(f"none of the {len(scans)} scans can be used; the first: {reason}")
    found = drift(
        calibration.scan_scores, _scores(calibration, rows), rate=rate,
        level=DRIFT_LEVEL if level is None else level,
    )  # fmt: skip
    return DriftReport(found, rows, package, notes.skipped, notes.fallbacks, inputs, notes.device)


def _skip_other_kind(notes: Notes, name: str, calibration: Calibration) -> None:
    kind = {2: "slices", 3: "volumes"}[calibration.spatial_dims]
    notes.skipped[name] = f"the model was calibrated on {kind}, whose scores are another quantity"


def _scores(calibration: Calibration, rows: list[Row]) -> list[float]:
    return calibration.comparable([row.score for row in rows], [row.person for row in rows])
