"""``medgen probe``: compare, and write table, curves and record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.devices import resolve_device
from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.detect_files import write_json
from medgen.tasks.output_folder import output_folder, refuse_inside
from medgen.tasks.probe import Options, probe
from medgen.tasks.running import Progress

RESULT, ROWS, TABLE, CURVES, RUN = ("probe.json", "probe.tsv", "table.md", "curves.png", "run.json")
NAMES = (RESULT, ROWS, TABLE, CURVES, RUN)


def probe_files(
    runs: Sequence[str],
    folder: Path,
    output: Path,
    config: Mapping[str, Any],
    options: Options,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str = "probe",
) -> dict[str, Any]:
    """Run :func:`medgen.tasks.probe.probe` and write :data:`NAMES` into ``output``.

    Raises:
        InputError: Bad input, or the folder holds results already.
        LeakageError: A held-out group was trained on.
    """
    from medgen.report.probe import draw_curves, markdown, tsv

    refuse_inside(output, folder)
    timings: dict[str, float] = {}
    device = resolve_device(options.device)
    with output_folder(output, NAMES, overwrite=overwrite) as draft:
        with timed(timings, "probe"):
            result = probe(runs, folder, config, options, progress)
        write_json(draft / RESULT, result)
        (draft / ROWS).write_text(tsv(result), encoding="utf-8")
        (draft / TABLE).write_text(markdown(result), encoding="utf-8")
        draw_curves(result, draft / CURVES)
        record = run_record(
            command, inputs=[fingerprint(folder)],
            outputs=[draft / name for name in NAMES if name != RUN], timings=timings,
            device=device, models=result["models"],
        )  # fmt: skip
        write_json(draft / RUN, record)
    return result
