"""Prediction of a whole case: cut into tiles, run the network, stitch; knows no method.

Every mode is the same walk (see ``tiling``): over the slices of a view or over the volume,
window after window. Windows without a mask voxel are skipped; the others run in batches.

The average is a running one, ``map += (tile - map) * weight / weight so far`` (West, Commun ACM
1979). It equals the weighted sum divided by the true sum of weights, needs no second buffer, and
predictions that agree average to exactly themselves: an identity network returns its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from pydantic import Field, PositiveInt, model_validator

from medgen.config import Config
from medgen.errors import InputError, MedgenError
from medgen.inference.memory import FLOAT_BYTES, trace
from medgen.inference.tiling import Job, Sweep, Window

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

AXIS_OF_VIEW = {"sagittal": 0, "coronal": 1, "axial": 2}


class Inference(Config):
    """How a network is applied to a whole image. Axes are those of a RAS-oriented image."""

    mode: Literal["2d", "2.5d", "3d"] = Field(
        "2.5d",
        description="2d: slice by slice; 2.5d: with neighbouring slices as channels; 3d: volumes",
    )
    views: tuple[Literal["axial", "coronal", "sagittal"], ...] = Field(
        ("axial",), min_length=1, description="slice directions, averaged (2d and 2.5d)"
    )
    flips: bool = Field(False, description="average with the prediction of the left-right mirror")
    tile: tuple[PositiveInt, ...] | None = Field(
        None,
        description="size the network sees: two numbers in slices, three in volumes, rounded up to "
        "what the network can divide; none: the whole slice or volume",
    )
    overlap_fraction: float = Field(0.5, ge=0, lt=1, description="share of a tile its next covers")
    blending: Literal["gaussian", "constant"] = Field(
        "gaussian", description="weight of a tile: highest at its centre, or the same everywhere"
    )
    context_voxels: int = Field(
        4,
        ge=0,
        description="surroundings of the mask that tiles may show: they lie within its box grown "
        "by this many voxels",
    )
    batch_size: int = Field(
        16, ge=1, description="most tiles at a time; changes speed, not results"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        expected = 3 if self.mode == "3d" else 2
        if self.tile is not None and len(self.tile) != expected:
            msg = f"a tile for mode {self.mode} has {expected} sizes, got {self.tile}"
            raise ValueError(msg)
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"each view counts once, got {self.views}")
        return self


class Predicts(Protocol):
    """What inference asks of a method (an ``nn.Module``)."""

    divisor: int
    spatial_dims: int
    input_slices: int

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Image ``(B, input_slices * C, *spatial)`` to maps ``(B, C', *spatial)`` by name."""

    def modules(self) -> Iterator[nn.Module]: ...  # noqa: D102
    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def eval(self) -> Any: ...  # noqa: D102
    def to(self, device: Any) -> Any: ...  # noqa: D102


def predict_volume(
    method: Predicts,
    image: Tensor,
    mask: Tensor | None,
    inference: Inference,
    *,
    device: str | torch.device = "cpu",
    max_memory_gb: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Predict every map of a method on a whole image.

    With a mask, tiles lie in its box grown by ``context_voxels``, and those without a voxel of it
    are skipped. Outside the mask ``restored`` is the image and every other map is 0.

    Args:
        method: Network; moved to ``device``, put in evaluation mode while it runs.
        image: ``(C, X, Y)`` or ``(C, X, Y, Z)``; not changed.
        mask: ``(1, X, Y[, Z])``, true where a prediction is wanted; everywhere when None.
        inference: How to apply the network.
        device: Where to compute.
        max_memory_gb: Limit on ``estimate_memory_gb``. Batches shrink to keep it.
        progress: Called with (tiles done, tiles in all) after each batch.

    Returns:
        Maps ``(C', X, Y[, Z])``, float32, on the CPU, by the names the method gives them.

    Raises:
        InputError: If image, mask and network do not fit together, the mask is empty, or even
            one tile at a time needs more than ``max_memory_gb``.
    """
    import torch

    sweeps_of(method, image.shape, inference)  # refuses what does not fit before any work
    inference = _within_memory(method, image.shape, inference, max_memory_gb)
    image = image.detach().as_subclass(torch.Tensor).to(device, torch.float32)
    inside = _check_mask(mask, image)
    box = _box(inside, image, inference.context_voxels)
    maps = _predict_box(
        method.to(device), image[box], None if inside is None else inside[box], inference, progress
    )
    if inside is None:
        return {name: map_.cpu() for name, map_ in maps.items()}
    # One after the other, each freed when it is in its place.
    return {name: _outside(name, maps.pop(name), image, inside, box) for name in [*maps]}


def estimate_memory_gb(method: Predicts, shape: Sequence[int], inference: Inference) -> float:
    """Peak memory of ``predict_volume`` in GB (1e9 bytes), beyond what is loaded before it starts.

    The network is traced on tensors without data at its true tile and batch size, which costs
    milliseconds whatever the size.

    Args:
        method: Network.
        shape: Of the image, ``(C, X, Y)`` or ``(C, X, Y, Z)``.
        inference: How the network is applied.

    Raises:
        InputError: If the image and the network do not fit together.
    """
    voxels, peak = prod(shape[1:]), 0.0
    for sweep in sweeps_of(method, shape, inference):
        batch = min(inference.batch_size, sweep.tiles)
        tiles = (batch, sweep.slices * shape[0], *sweep.tile)
        with _evaluation(method):
            live, channels = trace(method.predict, tiles)
        # The image and its padded copy, the maps with one being put in place, the weights.
        values = shape[0] * (voxels + sweep.padded_voxels) + (channels + 1) * voxels
        values += 3 * prod(sweep.padded)
        if sweep.mirror is not None:
            values += prod(tiles) + batch * channels * prod(sweep.tile)
        peak = max(peak, FLOAT_BYTES * values + voxels + live)
    return (peak + sum(p.numel() * p.element_size() for p in method.parameters())) / 1e9


def sweeps_of(method: Predicts, shape: Sequence[int], inference: Inference) -> list[Sweep]:
    """The walks that the mode and the views ask for; several are averaged."""
    spatial = tuple(shape[1:])
    dims = 3 if inference.mode == "3d" else 2
    if len(spatial) not in (2, 3) or min(spatial) < 1 or len(spatial) < dims:
        msg = f"mode {inference.mode} needs an image (C, X, Y{', Z' if dims == 3 else '[, Z]'})"
        raise InputError(f"{msg}, got the shape {tuple(shape)}")
    if method.spatial_dims != dims or (inference.mode == "2d" and method.input_slices != 1):
        raise InputError(
            f"mode {inference.mode} does not fit a {method.spatial_dims}-D network that reads "
            f"{method.input_slices} slice(s)",
            "Use mode 3d for 3-D networks, 2d for one slice and 2.5d for several.",
        )
    axes: list[int | None] = [None]
    if dims == 2 and len(spatial) == 3:
        axes = [AXIS_OF_VIEW[view] for view in inference.views]
    return [_sweep(method, spatial, axis, inference) for axis in axes]


def _sweep(
    method: Predicts, spatial: tuple[int, ...], axis: int | None, inference: Inference
) -> Sweep:
    mirror: Literal["item", "order"] | None = None
    if inference.flips and axis != AXIS_OF_VIEW["sagittal"]:
        mirror = "item"
    elif inference.flips and method.input_slices > 1:
        mirror = "order"
    size = inference.tile or tuple(n for dim, n in enumerate(spatial) if dim != axis)
    return Sweep(
        spatial=spatial,
        axis=axis,
        tile=tuple(-(-n // method.divisor) * method.divisor for n in size),
        slices=method.input_slices,
        mirror=mirror,
        overlap_fraction=inference.overlap_fraction,
        blending=inference.blending,
    )


def _predict_box(
    method: Predicts,
    image: Tensor,
    inside: Tensor | None,
    inference: Inference,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """Run every sweep over an image and average what they predict."""
    import torch

    sweeps = sweeps_of(method, image.shape, inference)
    plans = [sweep.jobs(inside) for sweep in sweeps]
    total, done = sum(map(len, plans)), 0
    maps: dict[str, Tensor] = {}
    with _evaluation(method):
        for earlier, (sweep, jobs) in enumerate(zip(sweeps, plans, strict=True)):
            parts = sweep.parts(jobs, earlier, len(sweeps), image.device)
            stack = sweep.padded_stack(image)
            for first in range(0, len(jobs), inference.batch_size):
                batch = jobs[first : first + inference.batch_size]
                tiles = torch.stack([sweep.cut(stack, job) for job in batch])
                _blend(maps, _predict(method, tiles, sweep), batch, parts, sweep)
                done += len(batch)
                if progress is not None:
                    progress(done, total)
    return maps


def _predict(method: Predicts, tiles: Tensor, sweep: Sweep) -> dict[str, Tensor]:
    """Maps ``(B, C', *tile)`` of tiles ``(B, slices * C, *tile)``, averaged with the mirror's."""
    import torch

    with torch.inference_mode():
        outputs = {name: output.float() for name, output in method.predict(tiles).items()}
        if sweep.mirror is not None:
            for name, output in method.predict(sweep.mirrored(tiles)).items():
                other = sweep.mirrored_back(output.float())
                outputs[name] = torch.lerp(outputs[name], other, 0.5)
    for name, output in outputs.items():
        if output.shape[0] != len(tiles) or output.shape[2:] != tiles.shape[2:]:
            raise MedgenError(
                f"the network's map {name!r} has the shape {tuple(output.shape)}; its batch and "
                f"spatial sizes should be those of its input, {tuple(tiles.shape)}"
            )
    return outputs


def _blend(
    maps: dict[str, Tensor],
    outputs: dict[str, Tensor],
    jobs: list[Job],
    parts: Iterator[tuple[Window, Window, Tensor]],
    sweep: Sweep,
) -> None:
    """Average the tiles of each output into its whole map; the outputs are only read."""
    for name, output in outputs.items():
        if name not in maps:
            maps[name] = output.new_zeros((output.shape[1], *sweep.spatial))
    stacks = [(sweep.stack(maps[name]), output) for name, output in outputs.items()]
    for row, ((_, item), (target, source, share)) in enumerate(zip(jobs, parts, strict=False)):
        for stack, output in stacks:
            stack[item][target].lerp_(output[row][source], share)


def _outside(name: str, map_: Tensor, image: Tensor, inside: Tensor, box: Window) -> Tensor:
    """Put a map in its place in the image, and settle what lies outside the mask."""
    import torch

    if name == "restored" and len(map_) == len(image):
        whole = image.clone()
    else:
        whole = map_.new_zeros((len(map_), *image.shape[1:]))
    whole[box] = torch.where(inside[box], map_, whole[box])
    return whole.cpu()


def _box(inside: Tensor | None, image: Tensor, context: int) -> Window:
    """The mask's box with its surroundings, channels first; everything without a mask."""
    box = [slice(None)]
    for dim in range(1, image.ndim):
        found = slice(None)
        if inside is not None:
            others = [other for other in range(image.ndim) if other != dim]
            where = inside.sum(others).nonzero()[:, 0]
            first, last = int(where[0]), int(where[-1])
            found = slice(max(first - context, 0), last + 1 + context)
        box.append(found)
    return tuple(box)


def _check_mask(mask: Tensor | None, image: Tensor) -> Tensor | None:
    import torch

    if mask is None:
        return None
    inside = mask.detach().as_subclass(torch.Tensor).to(image.device).bool()
    if inside.shape != (1, *image.shape[1:]):
        msg = f"the mask has the shape {tuple(mask.shape)}, the image {tuple(image.shape)}"
        raise InputError(f"{msg}; expected a mask {(1, *image.shape[1:])}")
    if not inside.any():
        raise InputError(
            "the mask is empty: nothing in the image is foreground",
            "Check the image and how its foreground is found.",
        )
    return inside


def _within_memory(
    method: Predicts, shape: Sequence[int], inference: Inference, limit_gb: float | None
) -> Inference:
    """Halve the batch until the estimate keeps the limit; results do not depend on it."""
    if limit_gb is None:
        return inference
    while (needed := estimate_memory_gb(method, shape, inference)) > limit_gb:
        if inference.batch_size == 1:
            raise InputError(
                f"an image of shape {tuple(shape)} needs about {needed:.1f} GB even one tile at a "
                f"time; the limit is {limit_gb:g} GB",
                "Raise the limit, use smaller tiles, or resample the image to a coarser grid.",
            )
        inference = inference.model_copy(update={"batch_size": inference.batch_size // 2})
    return inference


@contextmanager
def _evaluation(method: Predicts) -> Iterator[None]:
    """Deterministic and in full float32; training modes are put back afterwards."""
    import torch

    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        # TF32 would make results depend on batch and tile size in the third digit.
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
