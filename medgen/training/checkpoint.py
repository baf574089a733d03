"""Checkpoints: everything a run needs to go on exactly, in one safetensors file.

Tensors are stored under ``method/``, ``average/`` and ``optimizer/``; all else is JSON in the
file's header. There is no random state to keep: each step seeds the generators anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from medgen.errors import InputError, MedgenError

HEADER = "medgen.training"


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        step: Number of finished steps.
        seconds: Time they took, over all resumed parts.
        config: The run's configuration as plain data.
    """

    step: int
    seconds: float
    config: dict[str, Any]


def write_complete(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``path``, and rename it only once it is on the disk."""
    draft = path.with_name(f".{path.name}.part")
    try:
        write(draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def plain(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Independent contiguous copies on the CPU, which is what safetensors can store."""
    return {
        prefix + name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in tensors.items()
    }


def save_checkpoint(
    path: Path,
    position: Position,
    method: nn.Module,
    average: nn.Module,
    optimizers: Mapping[str, Optimizer],
) -> None:
    """Replace the checkpoint at ``path``, or leave the old one untouched if that fails."""
    tensors = plain(method.state_dict(), "method/") | plain(average.state_dict(), "average/")
    scalars: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        found, scalars[name] = _flatten(name, optimizer.state_dict())
        tensors |= plain(found, f"optimizer/{name}/")
    header = {**vars(position), "optimizers": scalars}
    write_complete(
        path, lambda draft: save_file(tensors, draft, metadata={HEADER: json.dumps(header)})
    )


def read_position(path: Path) -> Position:
    """How far the run behind a checkpoint has come.

    Raises:
        InputError: There is no checkpoint, or it is damaged or of another kind.
    """
    header = _header(path)
    return Position(header["step"], header["seconds"], header["config"])


def load_checkpoint(
    path: Path, method: nn.Module, average: nn.Module, optimizers: Mapping[str, Optimizer]
) -> None:
    """Put a checkpoint's state into the networks and optimisers.

    Raises:
        InputError: The checkpoint is damaged, or of other networks or optimisers.
    """
    header = _header(path)
    groups: dict[str, dict[str, Tensor]] = {"method": {}, "average": {}, "optimizer": {}}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            group, _, name = key.partition("/")
            groups[group][name] = file.get_tensor(key)
    try:
        method.load_state_dict(groups["method"])
        average.load_state_dict(groups["average"])
        for name, optimizer in optimizers.items():
            prefix = f"{name}/"
            tensors = {
                key.removeprefix(prefix): value
                for key, value in groups["optimizer"].items()
                if key.startswith(prefix)
            }
            optimizer.load_state_dict(_nest(header["optimizers"][name], tensors, optimizer))
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"the checkpoint {path} does not fit this method: {reason}") from error


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"there is no checkpoint at {path}", "Start the training without --resume."
        )
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})[HEADER])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged or no checkpoint of medgen: {error}") from error
    return header


def _flatten(name: str, state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of an optimiser's state by ``parameter/key``, and the rest as plain data."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for parameter, values in state["state"].items():
        scalars[str(parameter)] = {}
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{key}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                scalars[str(parameter)][key] = value
            else:
                kind = type(value).__name__
                raise MedgenError(f"optimizer {name!r} keeps a {kind}, which cannot be saved")
    return tensors, {"state": scalars, "groups": state["param_groups"]}


def _nest(
    scalars: dict[str, Any], tensors: Mapping[str, Tensor], optimizer: Optimizer
) -> dict[str, Any]:
    """The state dictionary that :func:`_flatten` took apart."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(n): dict(v) for n, v in scalars["state"].items()}
    for name, value in tensors.items():
        number, _, key = name.partition("/")
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            # In the parameter's memory order: another one may round differently.
            value = torch.empty_like(parameter).copy_(value)
        state[int(number)][key] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in scalars["groups"]
    ]
    return {"state": state, "param_groups": groups}
