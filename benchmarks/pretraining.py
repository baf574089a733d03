r"""What pre-training is worth on chest radiographs and histology when few images have labels.

Every way to pre-train learns from the training patients of a set for the same number of minutes (or
steps), without labels. Then all are probed on the patients that were kept back, at 1, 10 and 100 %
of the labelled patients, beside random weights and plain pixels; what did not help stays in the
table. A finished run in --work is not trained again.

    python benchmarks/pretraining.py --data DATA --minutes 10 --fine-tune \
        --output benchmarks/results/pretraining.md
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.devices import resolve_device
from medgen.report.probe import draw_curves, markdown
from medgen.tasks.pretrain import METHODS, Where, pretraining_config
from medgen.tasks.probe import Options, probe
from medgen.tasks.train import train

# Histology has no up and down; a mirrored chest has its heart on the wrong side.
SETS: dict[str, tuple[Where, str]] = {
    "chest_xray": (Where(group_pattern="^([^_]+)_"), "none"),
    "histology": (Where(), "dihedral"),
}
STEPS_WITHOUT_END = 1_000_000


def pretrained(name: str, method: str, wish: argparse.Namespace) -> Path:
    """The folder of a run, trained unless it is finished already."""
    folder: Path = wish.work / name / method
    record = folder / "training.json"
    if record.is_file() and json.loads(record.read_text())["finished"]:
        return folder
    where, symmetries = SETS[name]
    data = wish.data / name
    settings = pretraining_config(
        data, method, where=replace(where, held_out=wish.held_out), size=wish.size,
        symmetries=symmetries, steps=wish.steps or STEPS_WITHOUT_END,
        minutes=None if wish.steps else wish.minutes, batch_size=wish.batch_size,
    )  # fmt: skip
    train(data, settings, folder, overwrite=folder.exists(), device=wish.device)
    return folder


def main() -> None:
    """Pre-train, probe, write a table and a picture for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds chest_xray and histology")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of each pre-training")
    parser.add_argument("--steps", type=int, help="of each pre-training, instead of minutes")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--held-out", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fine-tune", action="store_true")
    parser.add_argument("--fine-tune-steps", type=int, default=300)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--output", type=Path, required=True, help="Markdown")
    wish = parser.parse_args()
    wish.device = resolve_device(wish.device)
    options = Options(
        seeds=wish.seeds, fine_tune=wish.fine_tune, fine_tune_steps=wish.fine_tune_steps,
        device=wish.device,
    )  # fmt: skip
    budget = f"{wish.steps} steps" if wish.steps else f"{wish.minutes:g} minutes"
    parts = [
        "# What pre-training is worth\n",
        f"Each pre-training: {budget} of {wish.batch_size} images, {wish.size} pixels, on "
        f"{wish.device} ({platform.machine()}). Made by `python benchmarks/pretraining.py`; see "
        "[how to](../../docs/how-to/pretrain.md).\n",
    ]
    for name in wish.sets:
        runs = [str(pretrained(name, method, wish)) for method in wish.methods]
        where, _ = SETS[name]
        config: dict[str, Any] = {"validation_fraction": wish.held_out}
        if where.group_pattern:
            config["group_pattern"] = where.group_pattern
        result = probe(runs, wish.data / name, config, options)
        parts.append(markdown(result).replace("# What pre-training is worth", f"# {name}", 1))
        draw_curves(result, wish.output.with_name(f"{wish.output.stem}_{name}.png"))
        wish.output.write_text("\n".join(parts).replace("\n# ", "\n## "), encoding="utf-8")


if __name__ == "__main__":
    main()
