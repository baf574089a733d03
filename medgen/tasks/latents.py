"""Latent vectors: drawn, interpolated, added and subtracted. Needs no torch.

A code is what an image is made from: a latent ``z``, whose entries are standard normal, and a
condition; or, for a model with a mapping network (StyleGAN2), a style ``w``, which holds the
condition already. Styles are mixed along straight lines. A weighted sum of standard normal latents
has another length than a network was trained on, so it is divided by the root of the sum of the
squared weights, which keeps every entry's variance at 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError

LARGEST_SEED = 2**32 - 1
FEWEST_STEPS, MOST_STEPS = 2, 64
KNOTS = 3  # vectors along each side of the grid

Vector = NDArray[np.float32]
Space = Literal["z", "w"]


@dataclass(frozen=True, eq=False)
class Code:
    """What one image is made from.

    Attributes:
        values: A latent of the model's ``latent_shape``, or a style ``(w_dim,)``.
        space: Which of the two.
        condition: Number of the condition; None for a style or a model without conditions.
        labels: Label map ``(*image_size)`` to paint, instead of one that the model makes.
    """

    values: Vector
    space: Space = "z"
    condition: int | None = None
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image to be made.

    Attributes:
        index: Its number, from 0.
        code: What it is made from.
        name: What it shows, for its file name and caption.
        condition: Name of the condition, if one holds.
        seed: Seed that its latent was drawn with; None if it was not drawn.
        truncation: How far the latent is pulled towards the mean; 1 is not at all.
        details: What else is known of it, as JSON values.
    """

    index: int
    code: Code
    name: str
    condition: str | None
    seed: int | None
    truncation: float
    details: Mapping[str, Any]


def draw(shape: Sequence[int], seed: int, index: int) -> Vector:
    """The standard normal latent of image ``index`` of ``seed``: the same for any number asked."""
    generator = np.random.default_rng(np.random.SeedSequence((seed, index)))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def check_seed(seed: int) -> None:
    """Refuse a seed out of range.

    Raises:
        InputError: It is.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"the seed must be from 0 to {LARGEST_SEED}, got {seed}")


def mix(codes: Sequence[Code], weights: Sequence[float]) -> Code:
    """The weighted mean of codes of one space and condition; weights sum to 1."""
    first = codes[0]
    total = np.zeros_like(first.values, dtype=np.float64)
    for code, weight in zip(codes, weights, strict=True):
        total += weight * code.values
    if first.space == "z":
        total /= np.sqrt(np.sum(np.square(weights)))
    return Code(total.astype(np.float32), first.space, first.condition)


def line(start: Code, end: Code, steps: int) -> Iterator[tuple[float, Code]]:
    """Codes from start to end, both included, with their place 0..1.

    Raises:
        InputError: Too few or too many steps, or two conditions that cannot be mixed.
    """
    check_steps(steps)
    _mixable([start, end])
    for step in range(steps):
        part = step / (steps - 1)
        yield part, mix([start, end], [1 - part, part])


def lattice(knots: Sequence[Code], steps: int) -> Iterator[tuple[tuple[float, float], Code]]:
    """A square of codes around 3 x 3 given ones, mixed bilinearly between four neighbours.

    Args:
        knots: Nine codes, row by row.
        steps: From one knot to the next.

    Yields:
        Row and column in units of knots (0..2), and the code; row by row.

    Raises:
        InputError: Too many steps.
    """
    if not 1 <= steps <= MOST_STEPS // KNOTS:
        raise InputError(f"--steps must be from 1 to {MOST_STEPS // KNOTS}, got {steps}")
    _mixable(knots)
    places = np.arange((KNOTS - 1) * steps + 1) / steps
    for row in places:
        for column in places:
            weights = np.outer(_tent(row), _tent(column)).ravel().tolist()
            used = [n for n, weight in enumerate(weights) if weight]
            mixed = mix([knots[n] for n in used], [weights[n] for n in used])
            yield (float(row), float(column)), mixed


def _tent(place: float) -> NDArray[np.float64]:
    """Weight of each knot at a place between them."""
    return np.maximum(0.0, 1.0 - np.abs(np.arange(KNOTS) - place))


def check_steps(steps: int) -> None:
    """Refuse a number of steps that makes no picture.

    Raises:
        InputError: It does.
    """
    if not FEWEST_STEPS <= steps <= MOST_STEPS:
        raise InputError(f"--steps must be from {FEWEST_STEPS} to {MOST_STEPS}, got {steps}")


def _mixable(codes: Iterable[Code]) -> None:
    if len({(code.space, code.condition) for code in codes}) > 1:
        msg = "only images of one condition can be mixed in this model's latent space"
        raise InputError(msg, "Choose one with --condition, or a model with a style space.")


# A name, with its attribute after a colon; blanks separate, so that names may hold a hyphen.
_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_.][A-Za-z0-9_.-]*(:[A-Za-z0-9_.-]+)?")
_SIGNS = {"+": 1, "-": -1, "−": -1}
_EXAMPLE = 'An example: "cancer:lumen - cancer:no_lumen + benign:no_lumen", with blanks.'


def parse_expression(text: str) -> list[tuple[int, str]]:
    """Signs (1 or -1) and names of ``"a - b + c"``.

    Raises:
        InputError: It is empty, or names and signs do not take turns.
    """
    terms: list[tuple[int, str]] = []
    sign: int | None = 1
    for number, word in enumerate(text.split()):
        if word in _SIGNS:
            if sign is not None and number > 0:
                raise InputError(f"in {text!r}, two signs follow each other at {word!r}", _EXAMPLE)
            sign = _SIGNS[word]
        elif not _NAME.fullmatch(word):
            raise InputError(f"in {text!r}, {word!r} is neither a name nor + or -", _EXAMPLE)
        elif sign is None:
            raise InputError(f"in {text!r}, a + or - is missing before {word!r}", _EXAMPLE)
        else:
            terms.append((sign, word))
            sign = None
    if not terms:
        raise InputError(f"the expression {text!r} names no set of images", _EXAMPLE)
    if sign is not None:
        raise InputError(f"the expression {text!r} ends with a sign", _EXAMPLE)
    return terms


def check_terms(terms: Sequence[tuple[int, str]], known: Collection[str]) -> None:
    """Refuse an expression that names a set which is not there.

    Raises:
        InputError: It does; suggests the nearest.
    """
    for _, name in terms:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            question = f" Did you mean {nearest[0]!r}?" if nearest else ""
            listed = ", ".join(sorted(known)) or "none"
            hint = f"Known sets: {listed}. Give another with --set {name}=FOLDER."
            if "-" in name:  # which a name may hold
                hint += f" {_EXAMPLE}"
            raise InputError(f"there is no set of images {name!r}.{question}", hint)


def evaluate(terms: Sequence[tuple[int, str]], means: Mapping[str, Vector]) -> Vector:
    """The signed sum of the sets' means."""
    total = np.sum([sign * means[name].astype(np.float64) for sign, name in terms], axis=0)
    return np.asarray(total, dtype=np.float32)
