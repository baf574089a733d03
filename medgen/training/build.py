"""From a configuration to a method with its first weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medgen.errors import InputError
from medgen.methods import method_class, registered
from medgen.training.config import TrainingConfig, validated

_START_HINT = "Give weights.safetensors of a run with the same method and config."


def build_method(config: TrainingConfig, *, resume: bool = False) -> Any:
    """The method that a configuration describes, with its first weights.

    Args:
        config: Of the run.
        resume: A checkpoint follows: what the run began with is in it, and the files of
            ``start_from`` and of the method's own :meth:`begin` may be gone.

    Raises:
        InputError: A setting is unknown or does not fit, or the method has nothing to train.
    """
    torch.manual_seed(config.seed)
    cls = method_class(config.method)
    settings = registered(config.method, config.config)[1]
    method = cls(validated(cls.Config, settings, f"config of {config.method}"))
    if not method.state_dict():
        raise InputError(f"method {config.method!r} has nothing to train")
    if resume:
        return method
    if hasattr(method, "begin"):
        method.begin()
    if config.start_from is not None:
        _begin_with(method, config.start_from)
    return method


def _begin_with(method: Any, path: Path) -> None:
    """Put the weights of an earlier run into a new method.

    Raises:
        InputError: There is no such file, or it holds weights of other networks.
    """
    try:
        missing, unknown = method.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read start_from {path}: {error}", _START_HINT) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        msg = f"the weights in {path} do not fit this method: {reason}"
        raise InputError(msg, _START_HINT) from error
    begun_anew = tuple(f"{part}." for part in getattr(method, "training_only", ()))
    wrong = [*unknown, *(name for name in missing if not name.startswith(begun_anew))]
    if wrong:
        raise InputError(
            f"the weights in {path} are of other networks; they differ in {wrong[0]}", _START_HINT
        )
