"""What a restoration package shows and verifies itself with: drawn anatomy, never a real scan."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.training.config import TrainingConfig

SHOWN = 6
# Pictures smaller than this are enlarged by a whole number.
SMALLEST_EDGE = 96
LARGEST_BYTES = 60_000
# Voxels along each axis of the golden image.
GOLDEN_2D, GOLDEN_3D = 32, 16
# What the picture shows as black and as white, in the scale of the network.
BLACK, WHITE = -0.1, 1.2


def drawn_source(config: TrainingConfig, method: Any) -> Any | None:
    """The run's source without its real images; phantoms if it has nothing else.

    None if the run learned from pairs of real images only, which nothing drawn resembles.
    """
    from medgen.training.batches import build_source

    data = dict(config.data)
    if data.get("kind") != "restoration":
        return None
    data["images"] = None
    data["anatomy"] = data.get("anatomy") or {"kind": "phantoms"}
    return build_source(config.model_copy(update={"data": data}), method)


def sample_picture(config: TrainingConfig, method: Any) -> bytes | None:
    """The first held-out examples as JPEG of at most 60 kB: input, result, truth, spread.

    White is the largest spread of all but one in a hundred of the pixels that count. None if
    nothing can be drawn; see :func:`drawn_source`.
    """
    import torch

    from medgen.package.restoration import WithSpread

    source = drawn_source(config, method)
    if source is None:
        return None
    rows = []
    network = WithSpread(method).eval()
    for number in range(SHOWN):  # one of each batch: those of one batch may show one anatomy
        batch = source.validation_batch(number)
        with torch.inference_mode():
            made = network.predict(batch["image"])
        if config.data.get("task") != "inpaint":  # what lies outside is blank in use
            made["output"] = made["output"] * batch["mask"]
        rows.append(_row(batch, made, method))
    spreads = np.concatenate([row[-1].ravel() for row in rows])
    white = float(np.percentile(spreads[spreads > 0], 99)) if spreads.any() else 1.0
    sheet = [np.concatenate([*shown, spread / white], axis=1) for *shown, spread in rows]
    return _jpeg(np.concatenate(sheet).clip(0, 1))


def _row(
    batch: Mapping[str, Any], made: Mapping[str, Any], method: Any
) -> list[NDArray[np.floating[Any]]]:
    """The first example of a batch: input, result and truth in 0..1, and the spread; upright."""
    first = method.channels * (method.input_slices // 2)
    images = [
        batch["image"][0, first], made["output"][0, 0], batch["target"][0, 0],
        made["spread"][0, 0] * batch["mask"][0, 0],
    ]  # fmt: skip
    flat = [np.asarray(image) for image in images]
    if method.spatial_dims == 3:  # the slice in which most counts
        place = int(np.asarray(batch["mask"][0, 0]).sum((0, 1)).argmax())
        flat = [image[..., place] for image in flat]
    zoom = -(-SMALLEST_EDGE // min(flat[0].shape))
    upright: list[NDArray[np.floating[Any]]] = [
        np.kron(np.rot90(image), np.ones((zoom, zoom), np.float32)) for image in flat
    ]
    return [(image - BLACK) / (WHITE - BLACK) for image in upright[:3]] + upright[3:]


def _jpeg(picture: NDArray[np.floating[Any]]) -> bytes:
    import PIL.Image

    image = PIL.Image.fromarray((255 * picture).astype(np.uint8))
    for quality in range(90, 20, -10):
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST_BYTES:
            break
    return file.getvalue()


def golden_image(config: TrainingConfig, method: Any, planes: int) -> NDArray[np.float16]:
    """A small prepared image ``(C, X, Y[, slices])``, or ``(C, X, Y, Z)`` in 3-D.

    Args:
        config: Of the run.
        method: The network.
        planes: Channels that only choose a target, which are added when it runs.
    """
    source = drawn_source(config, method)
    channels, slices = method.channels - planes, method.input_slices
    if source is None:
        return _smooth((channels, *(GOLDEN_2D,) * method.spatial_dims), slices)
    batch = source.validation_batch(0)
    image, mask = np.asarray(batch["image"]), np.asarray(batch["mask"][:, 0])
    # The one with most of the hole or body, cut around its middle.
    index = int(mask.reshape(len(mask), -1).sum(1).argmax())
    middle = np.argwhere(mask[index] > 0).mean(0)
    size = GOLDEN_2D if method.spatial_dims == 2 else GOLDEN_3D
    window = tuple(
        slice(start, start + size)
        for start in (
            int(np.clip(round(at) - size // 2, 0, max(0, whole - size)))
            for at, whole in zip(middle, mask.shape[1:], strict=True)
        )
    )
    part = image[index][(slice(None), *window)]
    part = part.reshape(slices, -1, *part.shape[1:])[:, :channels]
    if method.spatial_dims == 3 or slices == 1:
        return part[0].astype(np.float16)
    return np.ascontiguousarray(np.moveaxis(part, 0, -1)).astype(np.float16)


def _smooth(shape: tuple[int, ...], slices: int) -> NDArray[np.float16]:
    """A smooth random image, for networks whose images nothing drawn resembles."""
    from scipy import ndimage

    if len(shape) == 3 and slices > 1:
        shape = (*shape, slices)
    noise = np.random.default_rng(0).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, (0, *(2.0,) * (len(shape) - 1)))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float16)
