"""The one base of every configuration: frozen, typed, and unknown keys are refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable settings. A field's description is its help on the command line and in YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
