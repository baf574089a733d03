"""What a training run is told, and reading it from YAML. Does not import torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from medgen.config import Config, read_yaml
from medgen.errors import InputError
from medgen.methods import method_names

AnyConfig = TypeVar("AnyConfig", bound=Config)


class TrainingConfig(Config):
    """A whole training run. The settings of networks and optimisers belong to the method."""

    name: str = Field(description="name of the run and of the model made from it")
    seed: int = Field(0, ge=0, description="seed of weights, data and every step's randomness")
    method: str = Field(description="one of the registered methods")
    config: dict[str, Any] = Field({}, description="the method's settings")
    start_from: Path | None = Field(
        None,
        description="weights.safetensors of an earlier run of the same method to begin with; "
        "networks that it does not hold, such as critics, begin anew",
    )
    data: dict[str, Any] = Field(description="`kind` of the source and its settings")
    steps: int = Field(ge=1, description="batches to train on")
    minutes: float | None = Field(
        None,
        gt=0,
        description="training also ends after this many minutes, resumed ones included, and the "
        "schedule follows whichever of steps and minutes is nearer to its end; the result then "
        "depends on the machine's speed",
    )
    batch_size: int = Field(16, ge=1, description="images per step, unless `data` says otherwise")
    schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="learning rate after the warm-up; cosine falls to zero at the end"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linearly growing learning rate")
    ema_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of the running average of the weights, which is what gets saved; "
        "0 saves the last weights",
    )
    grad_clip: float | None = Field(None, gt=0, description="largest norm of a gradient")
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true", description="bf16-mixed trains faster on a GPU and is refused elsewhere"
    )
    workers: int = Field(0, ge=0, description="processes that draw batches ahead of time")
    threads: int | None = Field(None, ge=1, description="threads of the network; none: torch's")
    log_every: int = Field(50, ge=1, description="steps between lines of the log")
    image_every: int = Field(500, ge=1, description="steps between validations with an image grid")
    validation_batches: int = Field(1, ge=1, description="fixed batches of each validation")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    tensorboard: bool = Field(False, description="also write TensorBoard events")


# Kinds of data that are drawn while training runs, so that there is nothing to count beforehand.
DRAWN = frozenset({"label_maps", "phantoms", "mixture", "annotated_brain"})

# A run may be continued with other values of these: none changes what a step computes, except
# that more steps or minutes stretch the schedule.
CHANGEABLE = frozenset(
    {"name", "steps", "minutes", "workers", "threads", "log_every", "image_every"}
    | {"validation_batches", "checkpoint_every", "tensorboard"}
)


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a training configuration.

    Args:
        path: YAML file.
        overrides: ``key=value`` with a dotted key and a YAML value, such as ``data.folder=maps``.

    Raises:
        InputError: The file is missing or no YAML mapping, a key is unknown (the nearest known
            one is suggested), or a value does not fit.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        msg = f"{path} must hold `key: value` lines, got {type(values).__name__}"
        raise InputError(msg, "The folder configs/ holds examples.")
    return checked_config(values, str(path), overrides)


def checked_config(
    values: dict[str, Any], where: str, overrides: Sequence[str] = ()
) -> TrainingConfig:
    """A training configuration from its values, which :func:`read_config` reads from a file.

    Args:
        values: Nested dictionaries; the overrides are put into them.
        where: What they come from, for error messages.
        overrides: As for :func:`read_config`, and so are the errors.
    """
    for override in overrides:
        set_key(values, override)
    config = validated(TrainingConfig, values, where)
    if config.method not in method_names():
        raise InputError(
            f"{where}: unknown method {config.method!r}.{_nearest(config.method, method_names())}",
            f"Known methods: {', '.join(method_names())}.",
        )
    return config


def set_key(values: dict[str, Any], override: str) -> None:
    """Set one dotted key of a nested dictionary in place."""
    key, equals, text = override.partition("=")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"cannot set {key!r}: {parent!r} holds a single value")
    if not equals or not last:
        raise InputError(f"expected key=value, got {override!r}")
    try:
        values[last] = read_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"the value of {override!r} is not valid YAML") from error


def validated(kind: type[AnyConfig], values: Mapping[str, Any], where: str) -> AnyConfig:
    """Settings of one kind.

    Raises:
        InputError: Says every problem, with ``where`` in front.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems: list[str] = []
        hint = None
        for detail in error.errors():
            key = ".".join(str(part) for part in detail["loc"])
            own = _fields_at(kind, detail["loc"][:-1])
            if detail["type"] == "extra_forbidden":
                hint = f"Known keys: {', '.join(own)}."
                problems.append(f"unknown key {key!r}.{_nearest(str(detail['loc'][-1]), own)}")
            elif detail["type"] == "missing":
                hint = f"Known keys: {', '.join(own)}."
                problems.append(f"the key {key!r} is missing")
            elif detail["type"] == "value_error":  # medgen's own, which says what was given
                message = detail["msg"].removeprefix("Value error, ")
                problems.append(f"{key}: {message}" if key else message)
            else:
                problems.append(f"{key}: {detail['msg']}, got {detail['input']!r}")
        raise InputError(f"{where}: {'; '.join(problems)}", hint) from error


def _fields_at(kind: type[BaseModel], place: Sequence[int | str]) -> Mapping[str, FieldInfo]:
    """The keys of the settings that lie at a place inside others."""
    fields = kind.model_fields
    for part in place:
        annotation = fields[part].annotation if part in fields else None
        inner = [one for one in (annotation, *get_args(annotation)) if _is_model(one)]
        if not inner:
            break
        fields = inner[0].model_fields
    return fields


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _nearest(name: str, known: Any) -> str:
    """A question that suggests the known name nearest to this one, if any is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
