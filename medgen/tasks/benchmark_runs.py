"""Running the cells of a study: each leaves a file, so an interrupted study goes on where it was.

A cell is one method with one seed. One that fails does not stop the others. Cells run one after the
other here; :mod:`medgen.batch.cells` runs several at a time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from medgen.errors import InputError, MedgenError
from medgen.tasks.detect_files import write_json
from medgen.tasks.output_folder import cannot_write
from medgen.tasks.running import Progress

if TYPE_CHECKING:
    from medgen.training import TrainingConfig

logger = logging.getLogger(__name__)

SETTINGS, RESULT, RUNS = "benchmark.json", "result.json", "runs"
LONGEST_MESSAGE = 300

Order = TypeVar("Order")


def claim(output: Path, header: Mapping[str, Mapping[str, Any]], resume: bool) -> None:
    """Make a study's folder, or see that it holds a run of the same one.

    Args:
        output: The folder.
        header: What must not change between the parts of a study; a ``name`` may.
        resume: Go on with what is there.

    Raises:
        InputError: The folder is used, or holds another study.
    """
    file = output / SETTINGS
    occupied = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if not resume and occupied:
        raise InputError(
            f"{output} exists already", "Choose another folder, or go on with --resume."
        )
    if resume and occupied:
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{output} holds no benchmark to go on with") from error
        changed = [
            key
            for part in header
            for key in header[part]
            if kept.get(part, {}).get(key) != header[part][key] and key != "name"
        ]
        if changed:
            raise InputError(
                f"the benchmark in {output} was begun with another {', '.join(changed)}",
                "Go on with the same data and settings, or choose another folder.",
            )
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(file, header)
    except OSError as error:
        raise cannot_write(output, error) from error


def stored(folder: Path) -> dict[str, Any] | None:
    """The result of a cell; None if it is missing or damaged, so that the cell is done again."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Runner(Protocol):
    """Runs the cells of a study."""

    @property
    def jobs(self) -> int:
        """Cells at a time."""
        ...

    def __call__(
        self, orders: Mapping[str, Order], work: Callable[[Order], None]
    ) -> Iterator[tuple[str, str | None]]:
        """Carry out orders.

        Args:
            orders: By the name of their cell.
            work: A function of a module; what it raises ends its cell only.

        Yields:
            Each cell when it has ended, and what went wrong.
        """
        ...


@dataclass(frozen=True)
class InTurn:
    """Runs one cell after the other, in this process; see :class:`Runner`."""

    jobs: int = field(default=1, init=False)

    def __call__(
        self, orders: Mapping[str, Order], work: Callable[[Order], None]
    ) -> Iterator[tuple[str, str | None]]:
        """Carry out orders one by one."""
        for cell, order in orders.items():
            yield cell, attempted(work, order)


IN_TURN = InTurn()


def run_all(
    orders: Mapping[str, Order],
    work: Callable[[Order], None],
    runner: Runner,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Carry out orders; returns the message of each cell that failed."""
    failed: dict[str, str] = {}
    report = progress or (lambda done, total: None)
    report(0, len(orders))
    for done, (cell, message) in enumerate(runner(orders, work), start=1):
        report(done, len(orders))
        logger.info("%s: %s", cell, "done" if message is None else f"failed: {message}")
        if message is not None:
            failed[cell] = message
    return failed


def attempted(work: Callable[[Order], None], order: Order) -> str | None:
    """Carry out one order; returns what went wrong, or None."""
    try:
        work(order)
    except Exception as error:
        logger.debug("a cell failed", exc_info=True)
        return in_words(error)
    return None


def in_words(error: BaseException) -> str:
    """One line; torch lists every weight that does not fit."""
    words = error.message if isinstance(error, MedgenError) else f"{type(error).__name__}: {error}"
    return words.splitlines()[0][:LONGEST_MESSAGE]


def device_name(device: str) -> str:
    """The device for people: with the name of the card."""
    if device.startswith("cuda"):
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def trained(training: TrainingConfig, folder: Path, device: str) -> dict[str, Any]:
    """Train with medgen's loop, going on where an earlier call stopped; its ``training.json``."""
    from medgen.training import train

    record = folder / "training.json"
    if record.exists():
        kept: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if kept["finished"]:
            return kept
    resume = (folder / "checkpoint.safetensors").exists()
    train(training, folder, resume=resume, overwrite=not resume, device=device, progress=False)
    done: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return done
