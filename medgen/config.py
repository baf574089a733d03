"""The one base of every configuration: frozen, typed, and unknown keys are refused.

Also the one way to read YAML: a key that stands twice is an error, not the last of the two.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable settings. A field's description is its help on the command line and in YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def read_yaml(text: str) -> Any:
    """The value that YAML stands for: plain data only.

    Raises:
        yaml.YAMLError: It is no valid YAML, or a key stands twice in one mapping.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for n, key in enumerate(keys) if key in keys[:n]), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice!r} stands twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    loader = Strict(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
