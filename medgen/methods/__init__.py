"""Published methods, one file each, and the one registry that knows them all.

A method is an ``nn.Module`` with a ``Config`` that predicts maps from an image; see
``CONTRIBUTING.md`` for what it must offer. Importing this module imports no method and no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medgen.config import Config
from medgen.errors import InputError

if TYPE_CHECKING:
    from torch import nn

# Name on the command line and in packages: module and class. Only what stands here can be built.
REGISTRY: dict[str, tuple[str, str]] = {
    "intensity": ("medgen.methods.intensity", "Intensity"),
    "pca": ("medgen.methods.pca", "PCA"),
    "vae": ("medgen.methods.vae", "VAE"),
    "dae": ("medgen.methods.dae", "DAE"),
    "restore": ("medgen.methods.restore", "Restore"),
}


def method_names() -> tuple[str, ...]:
    """Names of all methods, in the order of the registry."""
    return tuple(REGISTRY)


def method_class(name: str) -> Any:
    """The class of a method; imports its module, and so torch.

    Raises:
        InputError: Unknown name; the nearest known one is suggested.
    """
    if name not in REGISTRY:
        nearest = difflib.get_close_matches(name.lower(), REGISTRY, n=1, cutoff=0.4)
        question = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise InputError(
            f"unknown method {name!r}.{question}", f"Known methods: {', '.join(REGISTRY)}."
        )
    module, attribute = REGISTRY[name]
    return getattr(import_module(module), attribute)


def build(name: str, config: Mapping[str, Any] | Config) -> nn.Module:
    """A method with freshly initialised weights (from torch's global random generator).

    Args:
        name: Name in the registry.
        config: The method's settings; what is left out has its default.

    Raises:
        InputError: Unknown method, or settings that do not fit together.
        pydantic.ValidationError: A setting is unknown or has a wrong type.
    """
    cls = method_class(name)
    values = config.model_dump() if isinstance(config, Config) else dict(config)
    method: nn.Module = cls(cls.Config.model_validate(values))
    return method
