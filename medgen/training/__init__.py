"""Training: one loop that knows no method, exact to resume. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medgen.training.config import TrainingConfig, read_config

if TYPE_CHECKING:
    from medgen.training.loop import TrainingResult, train

__all__ = ["TrainingConfig", "TrainingResult", "read_config", "train"]


def __getattr__(name: str) -> Any:
    """The loop itself, which needs torch, on first use."""
    if name in {"TrainingResult", "train"}:
        from medgen.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
