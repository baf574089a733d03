"""Give a model the reference distribution of a site: its own normal scans, in a new package.

The weights stay; what a scan score and the threshold mean is measured anew. What the promise is,
and what it takes, is said in :mod:`medgen.scoring.conformal`.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medgen.errors import InputError
from medgen.manifest import Parent
from medgen.package import CARD, ModelPackage, ScanMaps, load_package, save_recalibrated
from medgen.run_record import hash_name
from medgen.tasks.choose_model import AUTO, choose_detector
from medgen.tasks.normal_scans import Notes, Scan, find_scans, first_header, refuse_known, run_over
from medgen.tasks.running import Progress

if TYPE_CHECKING:
    from medgen.scoring import Calibration
    from medgen.scoring.calibration import Normal
    from medgen.scoring.conformal import Drift

logger = logging.getLogger(__name__)

DEFAULT_RATE = 0.05
PICTURE = "calibration.png"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A model with a new reference.

    Attributes:
        package: The new package.
        calibration: What it says.
        scores: Name, person and scan score of each normal scan, in the order of their names.
        shift: How the normals differ from those of the model's earlier calibration; None if it had
            none for scans of this kind.
        skipped: Name of each scan that could not be used, and why.
        fallbacks: What was done otherwise than wished.
    """

    package: ModelPackage
    calibration: Calibration
    scores: list[tuple[str, str, float]]
    shift: Drift | None
    skipped: dict[str, str] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)


def calibrate(
    controls: str | Path,
    model: str | Path | ModelPackage,
    output: str | Path,
    *,
    false_positive_rate: float | None = None,
    target_false_findings: float | None = None,
    group_pattern: str | None = None,
    device: str = "auto",
    max_memory_gb: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Calibrated:
    """Measure a model on normal scans of a site, and write a package that uses them.

    Args:
        controls: Folder of normal scans that nobody chose by what the model says of them.
        model: Name or folder of a detector, or one that is loaded; ``auto``: the one that takes the
            first scan. It stays as it is.
        output: Folder of the new package; its last part becomes the name.
        false_positive_rate: Share of normal people that may show any finding (0.05 if neither is
            given); chooses the threshold.
        target_false_findings: Or: findings allowed per normal scan, on average.
        group_pattern: Regular expression whose first (...) is the person in a file's name.
        device: ``auto``, ``cpu``, ``cuda[:N]`` or ``mps``.
        max_memory_gb: Scans that would need more are skipped.
        overwrite: Replace an existing package.
        progress: Called with (done, total) scans.

    Raises:
        InputError: Too few normal people for what was asked (says how many it takes), no scans, or
            an output that exists.
        LeakageError: The model was trained on one of them, or two are the same image.
    """
    if false_positive_rate is not None and target_false_findings is not None:
        msg = "the threshold keeps either a false-positive rate or a number of false findings"
        raise InputError(msg, "Give one of them.")
    if target_false_findings is None and false_positive_rate is None:
        false_positive_rate = DEFAULT_RATE
    output = Path(output)
    _check_output(output, overwrite)
    scans = find_scans(Path(controls), group_pattern)
    if model == AUTO:
        model, why = choose_detector(first_header(scans))
        logger.info(why)
    package = model if isinstance(model, ModelPackage) else load_package(model, "detect-anomalies")
    known = [one for data in package.manifest.training_data for one in data.hashed_ids]
    refuse_known(scans, known, "trained on")
    _refuse_too_few(scans, false_positive_rate, target_false_findings)
    notes = Notes()
    with tempfile.TemporaryDirectory(prefix="medgen-") as folder:
        used, normals, dims = [], [], set()
        for scan, volume, maps in run_over(
            scans, package, notes, device=device, max_memory_gb=max_memory_gb, progress=progress
        ):
            used.append(scan)
            dims.add(volume.spatial_dims)
            where = Path(folder) / str(len(used))
            normals.append(_kept(maps, where, volume.geometry.voxel_volume_mm3))
        if len(dims) > 1:
            msg = "some of the normal scans are slices and some are volumes"
            raise InputError(msg, "Their scores are different quantities: calibrate on one kind.")
        if not used:
            reason = next(iter(notes.skipped.values()))
            raise InputError(f"none of the {len(scans)} scans can be used; the first: {reason}")
        _refuse_too_few(used, false_positive_rate, target_false_findings)
        calibration, scores = _measured(
            normals, used, package, false_positive_rate, target_false_findings
        )
    calibration = calibration.model_copy(update={"spatial_dims": dims.pop()})
    shift = _shift(package, calibration, scores, used)
    made = _save(output, package, calibration, used, notes, shift, overwrite)
    rows = [(scan.name, scan.person, score) for scan, score in zip(used, scores, strict=True)]
    return Calibrated(made, calibration, rows, shift, notes.skipped, notes.fallbacks)


def _check_output(output: Path, overwrite: bool) -> None:
    """Refuse now what would be refused after all the work.

    Raises:
        InputError: The folder exists, or its name is none for a model.
    """
    if not _NAME.fullmatch(output.name):
        msg = f"the last part of -o becomes the model's name; {output.name!r} cannot"
        raise InputError(msg, "Use lower-case words joined by '-', such as brain-mr-our-site.")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already", "Choose another name, or use --overwrite.")


def _refuse_too_few(scans: Sequence[Scan], rate: float | None, findings: float | None) -> None:
    """Refuse a promise that so few people cannot give.

    Raises:
        InputError: Says how many it takes.
    """
    from medgen.scoring.conformal import SLACK, rank_of_limit, rounded_up

    people = len({scan.subject for scan in scans})
    if rate is not None:
        rank_of_limit(people, rate)
        return
    assert findings is not None  # one of the two is given
    if not findings > 0:
        raise InputError(f"the number of false findings must be above 0, got {findings:g}")
    fewest = int(np.ceil(1 / findings - SLACK))
    if len(scans) < fewest:
        raise InputError(
            f"{findings:g} false findings per scan take at least {fewest} normal scans to be seen, "
            f"there {'are' if len(scans) != 1 else 'is'} {len(scans)}",
            f"Add normal scans, or ask for {rounded_up(1 / len(scans)):g} or more.",
        )


def _kept(maps: ScanMaps, where: Path, voxel_volume_mm3: float) -> Normal:
    """Map and mask on disk, cut to the mask: they are needed again when all scans are known."""
    from medgen.scoring.maps import bounding_box

    kept = []
    box = bounding_box(maps.brain_mask)
    for name, array in (("map", maps.map[box]), ("mask", maps.brain_mask[box])):
        path = where.with_name(f"{where.name}-{name}.npy")
        np.save(path, array)
        kept.append(np.load(path, mmap_mode="r"))
    return kept[0], kept[1], voxel_volume_mm3


def _measured(
    normals: list[Normal],
    scans: Sequence[Scan],
    package: ModelPackage,
    rate: float | None,
    findings: float | None,
) -> tuple[Calibration, list[float]]:
    """The calibration, and the score of each scan."""
    from medgen.scoring import Calibration, scan_score

    people = [scan.subject for scan in scans]
    smallest = package.scoring.minimum_volume_mm3
    kind = package.scoring.scan_score
    scores = [scan_score(*normal, kind) for normal in normals]
    if rate is not None:
        made = Calibration.with_false_positive_rate(
            normals, rate, smallest, subjects=people, kind=kind
        )
        return made, scores
    assert findings is not None  # one of the two is given
    made = Calibration.from_normals(normals, findings, smallest, subjects=people, kind=kind)
    return made.one_score_per_person(scores, people), scores


def _shift(
    package: ModelPackage,
    calibration: Calibration,
    scores: Sequence[float],
    scans: Sequence[Scan],
) -> Drift | None:
    """How the normals look to the model's earlier calibration."""
    from medgen.scoring.conformal import drift

    old = package.calibration
    if old is None or old.spatial_dims != calibration.spatial_dims:
        return None
    return drift(old.scan_scores, old.comparable(scores, [scan.subject for scan in scans]))


def _save(
    output: Path,
    package: ModelPackage,
    calibration: Calibration,
    scans: Sequence[Scan],
    notes: Notes,
    shift: Drift | None,
    overwrite: bool,
) -> ModelPackage:
    from medgen.report.calibration import draw_calibration

    old = package.manifest
    earlier = package.calibration if shift is not None else None
    known = sorted({one for scan in scans for one in (hash_name(scan.identifier), *scan.contents)})
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / PICTURE
        draw_calibration(
            calibration.scan_scores,
            picture,
            parent=() if earlier is None else earlier.scan_scores,
            parent_name=old.name,
        )
        drawn = picture.read_bytes()
    changes: dict[str, Any] = {
        "name": output.name,
        "summary": f"{old.name}, calibrated on {len(scans)} other normal scans",
        # Dice of findings and the like hold for the threshold of the parent.
        "metrics": (),
        "parent": Parent(
            name=old.name,
            version=old.version,
            sha256=package.sha256,
            controls=len(scans),
            hashed_ids=tuple(known),
        ).model_dump(),
    }
    return save_recalibrated(
        output,
        package,
        calibration,
        card=_card(output.name, package, calibration, notes, shift),
        files={PICTURE: drawn},
        overwrite=overwrite,
        **changes,
    )


def shift_sentence(shift: Drift) -> str:
    """How the normals look to the earlier calibration, in a sentence."""
    expected = shift.rate * shift.batch
    alarms = f"{shift.alarms} of {shift.batch} would be at p ≤ {shift.rate:g}"
    return (
        f"By the earlier calibration, on {shift.reference} normals, {alarms} (expected: "
        f"{expected:.2g} or fewer), and a normal of this site scores higher than one of those with "
        f"a probability of {shift.auroc:.2f} (0.5 if they are alike)."
    )


def _card(
    name: str,
    package: ModelPackage,
    calibration: Calibration,
    notes: Notes,
    shift: Drift | None,
) -> str:
    old = package.manifest
    card = (package.folder / CARD).read_text(encoding="utf-8") if package.has(CARD) else ""
    # Its pictures stay with it, and its headings belong below ours.
    kept = [line for line in card.splitlines() if not line.startswith("![")]
    card = re.sub(r"^#", "###", "\n".join(kept), flags=re.MULTILINE)
    skipped = f"\n\n{len(notes.skipped)} scans could not be used." if notes.skipped else ""
    compared = f"\n\n{shift_sentence(shift)}" if shift is not None else ""
    return f"""# {name} {old.version}

{old.name} {old.version} with a calibration of its own, made by `medgen calibrate`. It gives the
same maps; what a scan score and the threshold mean was measured anew.

| parent | version | SHA-256 |
|---|---|---|
| {old.name} | {old.version} | `{package.sha256}` |

## Calibration

{calibration.threshold_rule}{skipped}{compared}

It holds for scans that come from the same people, scanners and sequences as these, and for as long
as that stays so: `medgen calibrate --drift FOLDER --model {name}` compares new scans with them.

![p-values of scan scores]({PICTURE})

## The parent's card

What it says of a threshold, of p-values and of findings was measured with the parent's calibration.

{card}
"""
