"""Train a method as a configuration file says, and leave a record of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.detect_files import write_json
from medgen.tasks.output_folder import cannot_write

if TYPE_CHECKING:
    from medgen.training import TrainingConfig, TrainingResult


def train(
    file: Path,
    settings: TrainingConfig,
    output: Path,
    *,
    changes: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    max_minutes: float | None = None,
    device: str = "auto",
    progress: bool = True,
    command: str = "train CONFIG -o OUT",
) -> TrainingResult:
    """Run :func:`medgen.training.train` and write ``run.json`` beside its results.

    Args:
        file: The configuration file, or the folder of the data if there is none; its hash is
            recorded.
        settings: What it says, after ``changes``.
        output: Folder of the run.
        changes: Settings changed by the caller, ``key=value``; values may be paths, so only the
            keys are recorded here. ``training.json`` holds all settings.
        resume: As for :func:`medgen.training.train`, and so are the others.
        overwrite: Replace an earlier run.
        max_minutes: Stop after so long.
        device: Where to compute.
        progress: Show a bar.
        command: The verb, without what ``changes`` and ``resume`` add to it.

    Raises:
        InputError: Settings, data, device and folder do not fit together.
    """
    from medgen.devices import resolve_device
    from medgen.training import train as run
    from medgen.training.loop import FILES

    device = resolve_device(device)
    timings: dict[str, float] = {}
    with timed(timings, "train"):
        result = run(
            settings, output, resume=resume, overwrite=overwrite, max_minutes=max_minutes,
            device=device, progress=progress,
        )  # fmt: skip
    keys = [f"--set {change.partition('=')[0]}=..." for change in changes]
    words = [command, *keys, *(["--resume"] if resume else [])]
    try:
        written = [output / name for name in FILES if (output / name).exists()]
        record = run_record(
            " ".join(words), inputs=[fingerprint(file)],
            outputs=[path for path in written if path.name != "run.json"], timings=timings,
            device=device, seed=settings.seed, step=result.step, complete=result.finished,
        )  # fmt: skip
        write_json(output / "run.json", record)
    except OSError as error:
        raise cannot_write(output, error) from error
    return result


def dry_run(settings: TrainingConfig) -> dict[str, Any]:
    """All settings, and what the data are made of, if they are files: ``source``.

    Raises:
        InputError: Settings and data do not fit together, as training would find.
    """
    from medgen.training.config import DRAWN

    values: dict[str, Any] = settings.model_dump(mode="json")
    if settings.data.get("kind") in DRAWN:
        return values
    from medgen.training.batches import build_source
    from medgen.training.build import build_method

    facts = getattr(build_source(settings, build_method(settings)), "facts", {})
    return values | {"source": _without_ids(facts)}


def _without_ids(facts: Any) -> Any:
    """Facts about data without the long lists of hashes, which training.json keeps."""
    if not isinstance(facts, dict):
        return facts
    return {n: _without_ids(v) for n, v in facts.items() if n not in ("hashed_ids", "hashed_files")}
