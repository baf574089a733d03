"""A scan and what was made of it, turned towards the reader, and the words for both."""

# ruff: noqa: D102 - the protocol's members are explained where they are made

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medgen.report import words
from medgen.report.frame import Array, Frame, build_frame, content_box, grey_window
from medgen.volume import Geometry, Volume

TITLES = {
    "inpaint": "Inpainting",
    "super-resolve": "Super-resolution",
    "denoise": "Denoising",
    "translate": "Translation",
}
PAST = {
    "inpaint": "inpainted",
    "super-resolve": "brought to a finer grid",
    "denoise": "denoised",
    "translate": "translated",
}
MARGIN_MM = 4.0


class RestorationLike(Protocol):  # read-only, as a frozen dataclass is
    """What a report needs to know (see ``medgen.tasks.restoration.Restoration``)."""

    @property
    def verb(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def volume(self) -> Volume: ...
    @property
    def output(self) -> Array: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def before(self) -> Array: ...
    @property
    def uncertainty(self) -> Array | None: ...
    @property
    def level(self) -> float | None: ...
    @property
    def invented(self) -> Array | None: ...
    @property
    def measures(self) -> Mapping[str, float | str]: ...
    @property
    def model(self) -> Any: ...
    @property
    def model_sha256(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def fallbacks(self) -> Sequence[str]: ...
    @property
    def timings(self) -> Mapping[str, float]: ...
    @property
    def device(self) -> str: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Comparison(Frame):
    """What is shown, in the screen frame, on the grid of the result.

    Attributes:
        before: The scan ``(X, Y, Z)``.
        after: The result ``(X, Y, Z)``.
        uncertainty: In the unit of the result ``(X, Y, Z)``; or None.
        invented: Voxels without data of their own ``(X, Y, Z)``, bool; or None.
        before_window: Values of the scan shown as black and as white.
        after_window: Values of the result shown as black and as white: the same, but for a
            translation, whose values mean something else.
        uncertainty_maximum: Uncertainty shown in the brightest colour; 0 is the darkest.
    """

    before: Array
    after: Array
    uncertainty: Array | None
    invented: Array | None
    before_window: tuple[float, float]
    after_window: tuple[float, float]
    uncertainty_maximum: float

    @property
    def same_unit(self) -> bool:
        """Whether scan and result can be subtracted."""
        return self.before_window == self.after_window

    def focus(self) -> tuple[int, int, int]:
        """Screen voxel to look at: where most was invented, or the centre."""
        at = [size // 2 for size in self.shape]
        if self.invented is not None and self.invented.any():
            for axis in range(3):
                others = tuple(other for other in range(3) if other != axis)
                areas = self.invented.sum(axis=others)
                large = np.flatnonzero(areas >= 0.95 * areas.max())
                at[axis] = int(large[len(large) // 2])
        return at[0], at[1], at[2]


def build_comparison(restoration: RestorationLike) -> Comparison:
    """Turn a restoration to the screen frame and crop away what is empty."""
    whole = build_frame(restoration.geometry, restoration.volume.provenance)
    before, after = (whole.place(np.asarray(a)) for a in (restoration.before, restoration.output))
    invented = restoration.invented
    invented = None if invented is None else whole.place(np.asarray(invented)) > 0
    uncertainty = restoration.uncertainty
    uncertainty = None if uncertainty is None else whole.place(np.asarray(uncertainty))
    window = _window(before)
    after_window = _window(after) if restoration.verb == "translate" else window
    box = content_box(before, invented, window, whole, MARGIN_MM)
    return Comparison(
        **vars(whole.cropped(box)),
        before=before[box],
        after=after[box],
        uncertainty=None if uncertainty is None else uncertainty[box],
        invented=None if invented is None else invented[box],
        before_window=window,
        after_window=after_window,
        uncertainty_maximum=_maximum(uncertainty),
    )


def _window(image: Array) -> tuple[float, float]:
    """Black is the background; white is found without it, for it would darken all the rest."""
    low, _ = grey_window(image)
    _, high = grey_window(image, image > image.min())
    return low, high


def _maximum(uncertainty: Array | None) -> float:
    positive = np.empty(0) if uncertainty is None else uncertainty[uncertainty > 0]
    return float(np.percentile(positive, 99.5)) if positive.size else 1.0


def title(restoration: RestorationLike) -> str:
    """Of the page and the picture."""
    text = TITLES[restoration.verb]
    return f"{text} to {restoration.kind.upper()}" if restoration.verb == "translate" else text


def made(restoration: RestorationLike) -> str:
    """What of the result is no measurement, in a sentence that nobody can misread."""
    if restoration.invented is None:
        return "Every voxel of the result was computed: none is a measurement."
    count, total = int(np.count_nonzero(restoration.invented)), restoration.invented.size
    size = f"{count} voxels ({words.number(100 * count / total)} % of the image)"
    return (
        f"{size}, inside the outline, were invented: no data of the scan lies behind them. All "
        "others equal the scan."
    )


def uncertainty_meaning(restoration: RestorationLike) -> str:
    """What the uncertainty map says."""
    if restoration.uncertainty is None:
        return "There is no uncertainty map: this method does not know how far off it may be."
    if restoration.level is None:
        return (
            "The uncertainty is only relative: it shows where the model hesitates, and stands for "
            "no probability."
        )
    text = (
        f"The uncertainty is half the width of the interval around the result that should hold the "
        f"truth with probability {100 * restoration.level:.0f} %"
    )
    restores = restoration.model.restoration
    spread = None if restores is None else restores.spread
    if spread is None:
        return f"{text}."
    return f"{text}; measured: {100 * spread.coverage:.1f} %, on {spread.data.rstrip('.')}."


def measures(restoration: RestorationLike) -> list[tuple[str, str]]:
    """Name and value of what was measured."""
    return [
        (name.replace("_", " "), value if isinstance(value, str) else words.number(value, 3))
        for name, value in restoration.measures.items()
    ]


def grids(restoration: RestorationLike, frame: Frame) -> dict[str, str]:
    """The grid of the scan and, where it is another, of the result."""
    scan, result = restoration.volume.geometry, restoration.geometry
    if scan.same_grid_as(result):
        return {"Grid": words.grid(result, frame.anatomical)}
    return {
        "Grid of the scan": words.grid(scan, frame.anatomical),
        "Grid of the result": words.grid(result, frame.anatomical),
    }


def methods_paragraph(restoration: RestorationLike, frame: Frame) -> str:
    """A methods paragraph to paste into a paper."""
    model, target = restoration.model, ""
    if restoration.verb == "translate":
        target = f" to {restoration.kind.upper()}"
    identity = f"version {model.version}, method {model.method}"
    if restoration.model_sha256:
        identity += f", sha256 {restoration.model_sha256[:12]}"
    sentences = [
        f"The scan was {PAST[restoration.verb]}{target} with medgen "
        f"{words.versions().get('medgen', '')}".rstrip()
        + f" and its model {model.name} ({identity})",
        words.training_sentence(model.training_data),
        *(
            f"The {'image' if name == 'Grid' else name[8:]} had {text}"
            for name, text in grids(restoration, frame).items()
        ),
        made(restoration).rstrip("."),
        uncertainty_meaning(restoration).rstrip(".") if restoration.uncertainty is not None else "",
        *(note.strip().rstrip(".") for note in restoration.notes),
    ]
    return " ".join(f"{s[0].upper()}{s[1:]}." for s in sentences if s)
