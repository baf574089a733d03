"""What a package says that its training run does not know, and how the run is opened."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from medgen.config import Config
from medgen.errors import InputError
from medgen.manifest import Metric, TrainingData
from medgen.training.config import TrainingConfig


class Recipe(Config):
    """What packages of all tasks say."""

    name: str
    version: str
    summary: str
    intended_use: str
    limitations: str
    training_config: str = Field(description="the configuration, as a path in the repository")
    training_data: tuple[TrainingData, ...] = ()
    citations: tuple[str, ...] = Field((), description="of the training data, for the card")
    metrics: tuple[Metric, ...] = ()

    def described(self) -> dict[str, Any]:
        """The keys of the manifest that say the same."""
        names = ("name", "version", "summary", "intended_use", "training_data", "metrics")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training run.

    Attributes:
        record: Its ``training.json``.
        config: What was trained.
        method: The averaged network, in evaluation mode, rounded as a package stores it: what is
            measured is what will be used.
    """

    record: dict[str, Any]
    config: TrainingConfig
    method: Any


def open_run(folder: Path, changes: Sequence[str] = ()) -> Run:
    """Open a finished run.

    Args:
        folder: That ``medgen train`` wrote.
        changes: ``data.KEY=VALUE``: where the training data lie now, if not where the
            configuration says.

    Raises:
        InputError: The run is unfinished or damaged, or a change is malformed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from medgen.methods import build
    from medgen.package.weights import rounded

    record = record_of(folder)
    config = TrainingConfig.model_validate(record["config"])
    config = config.model_copy(update={"data": _changed(config.data, changes)})
    method: Any = build(config.method, config.config)
    unneeded = getattr(method, "training_only", ())
    for name in unneeded:
        setattr(method, name, None)
    try:
        stored = {
            name: rounded(value).to(value.dtype)
            for name, value in load_file(folder / "weights.safetensors").items()
            if name.partition(".")[0] not in unneeded
        }
        method.load_state_dict(stored)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        msg = f"the weights in {folder} are missing, damaged or of another method: {reason}"
        raise InputError(msg, "Train again, or copy the whole folder again.") from error
    return Run(record, config, method.eval())


def record_of(run: Path) -> dict[str, Any]:
    """What ``training.json`` says of a finished run."""
    try:
        record: dict[str, Any] = json.loads((run / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{run} holds no finished training run ({error})"
        raise InputError(msg, "Give the folder that `medgen train -o` wrote.") from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        msg = f"{run / 'training.json'} was not written by medgen train"
        raise InputError(msg, "Give the folder that `medgen train -o` wrote.")
    if not record.get("finished"):
        msg = f"the training run in {run} stopped at step {record.get('step')} before its end"
        raise InputError(msg, "Finish it with `medgen train --resume`.")
    return record


def _changed(data: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Settings of the data with other places; what was learned from them cannot change."""
    found: dict[str, Any] = copy.deepcopy(dict(data))
    for change in changes:
        key, equals, value = change.partition("=")
        start, *inner = key.split(".")
        if start != "data" or not inner or not equals:
            raise InputError(f"--set must be data.KEY=VALUE, got {change!r}")
        *outer, last = inner
        place = found
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InputError(f"--set {change}: data.{name} has no keys of its own")
        place[last] = value
    return found


def with_facts(data: TrainingData, facts: Mapping[str, Any]) -> TrainingData:
    """A data set with a hash for every group trained on, so that leakage can be seen."""
    hashes = tuple(facts.get("hashed_ids", ()))
    return data.model_copy(update={"hashed_ids": hashes, "cases": len(hashes)}) if hashes else data


def training_section(recipe: Recipe, record: dict[str, Any]) -> str:
    """The card's paragraph on the training run."""
    last = ", ".join(
        f"{name.removeprefix('validation/')} {value:.4g}"
        for name, value in record["metrics"].items()
        if name.startswith("validation/")
    )
    measured = f" On held-out data at the end: {last}." if last else ""
    steps, minutes = record["step"], record["seconds"] / 60
    took = f"{minutes:.0f} minutes" if minutes >= 1 else f"{60 * minutes:.0f} seconds"
    return f"""Method `{record["config"]["method"]}`, {record["parameters"]:,} parameters,
{steps:,} step{"s" * (steps != 1)} of {record["config"]["batch_size"]} images in
{took} on {record["device"]} ({record["threads"]} threads),
seed {record["seed"]}.{measured}
The configuration is `{recipe.training_config}`."""


def data_table(recipe: Recipe) -> str:
    """The card's table of training data, with citations below."""
    rows = "\n".join(f"| {d.name} | {d.cases} | {d.licence} |" for d in recipe.training_data)
    table = f"| data | cases | licence |\n|---|---|---|\n{rows}"
    cited = "\n".join(f"- {citation}" for citation in recipe.citations)
    return f"{table}\n\n{cited}" if cited else table


def metrics_table(recipe: Recipe) -> str:
    """The card's table of metrics."""
    if not recipe.metrics:
        return "Nothing yet."
    rows = "\n".join(
        f"| {m.name} | {m.value:.3f}{_interval(m)} | {m.data} | {m.split} |" for m in recipe.metrics
    )
    return f"| metric | value | data | how the data was used |\n|---|---|---|---|\n{rows}"


def _interval(metric: Metric) -> str:
    if metric.interval is None:
        return ""
    return f" ({metric.interval[0]:.3f} to {metric.interval[1]:.3f})"
