"""The shipped feature extractor is stored once, however many packages look through it.

A detector built on frozen features has a copy of the network that made them. If it is that of a
shipped package, the detector's own package leaves it out and names it with its hash, and it is read
from there when the model is used. A user's own extractor is stored with the detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medgen.errors import InputError, PackageError
from medgen.manifest import SharedWeights

if TYPE_CHECKING:
    from torch import Tensor

# Where a method keeps it.
PREFIX = "extractor.network."


def without_shared(
    method: Any, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], SharedWeights | None]:
    """Weights without those that a shipped extractor has, and which one that is.

    Args:
        method: Whose weights they are.
        weights: What using it needs.
    """
    import torch

    from medgen.package.weights import rounded

    own = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
    if len(own) == len(weights):
        return own, None
    found = shipped(method.config.extractor)
    if found is None:
        return dict(weights), None
    known, identity = found
    for name in weights.keys() - own.keys():
        other = known.get(name.removeprefix(PREFIX))
        # A run that is to be packed has been rounded already.
        if other is None or not torch.equal(rounded(weights[name]), rounded(other)):
            return dict(weights), None  # trained on another release of it
    return own, identity


def shared_weights(package: str, extractor: SharedWeights, method: Any) -> dict[str, Tensor]:
    """The weights that a package leaves out, by their names in the method.

    Raises:
        PackageError: The extractor is missing, damaged, or not the one that the package names.
    """
    try:
        found = shipped(extractor.name)
    except InputError as error:
        raise PackageError(f"package {package}: {error.message}", error.hint) from error
    if found is None or found[1] != extractor:
        what = "is not there" if found is None else "is another version of it"
        raise PackageError(
            f"package {package} looks through the features of {extractor.name} "
            f"({extractor.sha256[:12]}), which {what}",
            "Use the release of medgen that the package was made with, or make the package again.",
        )
    names = [name for name in method.state_dict() if name.startswith(PREFIX)]
    return {name: found[0][name.removeprefix(PREFIX)] for name in names}


def shipped(name: str) -> tuple[dict[str, Tensor], SharedWeights] | None:
    """Weights and identity of an extractor that medgen ships; None if it ships none such."""
    from medgen.networks.features import SHIPPED, read_extractor
    from medgen.package.files import WEIGHTS
    from medgen.run_record import hash_file

    file = SHIPPED / name / WEIGHTS
    if file.parent.parent != SHIPPED or not file.is_file():
        return None
    _, weights = read_extractor(str(file.parent))
    return weights, SharedWeights(name=name, sha256=hash_file(file))
