"""The one message about images that a network cannot halve often enough."""

from __future__ import annotations

from collections.abc import Sequence

from medgen.errors import InputError


def require_multiples(sizes: Sequence[int], divisor: int) -> None:
    """Refuse spatial sizes that a network with several resolutions would silently change.

    Raises:
        InputError: A size is not a multiple of ``divisor``; names the size to pad to.
    """
    if any(size % divisor for size in sizes):
        nearest = tuple(-(-size // divisor) * divisor for size in sizes)
        msg = f"spatial sizes must be multiples of {divisor}, got {tuple(sizes)}"
        raise InputError(msg, f"Pad the image to {nearest}.")
