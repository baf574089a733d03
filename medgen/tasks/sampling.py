"""From codes to images, in blocks of a size that nothing but the model and the device decides.

A network's last digits depend on how many images it computes at once, and rounding to 256 grey
values makes a visible difference of some of them. So image ``i`` is always computed at the same
place of a block of the same size, however many images are asked for: the last block is filled up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.tasks.latents import Code, Sample

# Voxels computed at once: enough to keep a processor or a GPU busy, and well within its memory.
BLOCK_VOXELS = {"cpu": 2**16, "cuda": 2**20, "mps": 2**18}
LARGEST_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Made:
    """One image.

    Attributes:
        sample: What it was made from.
        image: ``(C, *image_size)`` float32, -1..1.
        labels: ``(*image_size)`` int64, or None if the model makes none.
    """

    sample: Sample
    image: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    def pixels(self) -> NDArray[np.uint8]:
        """The image in 8 bits ``(C, *image_size)``: -1 is 0 and 1 is 255."""
        return np.round((self.image.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def block_size(method: Any, device: str) -> int:
    """Images computed at once."""
    voxels = BLOCK_VOXELS[device.partition(":")[0]]
    return int(np.clip(voxels // prod(method.image_size), 1, LARGEST_BLOCK))


def has_styles(method: Any) -> bool:
    """Whether the model has a style space W, as StyleGAN2 has."""
    return hasattr(method, "map")


def render(method: Any, samples: Iterable[Sample], device: str) -> Iterator[list[Made]]:
    """The images of samples, block by block.

    Args:
        method: In evaluation mode, on ``device``.
        samples: All with codes of one space, and all or none with label maps.
        device: Where to compute.

    Raises:
        InputError: The GPU has too little memory, or the network's output is not finite.
    """
    size = block_size(method, device)
    remaining = iter(samples)
    while block := list(islice(remaining, size)):
        made = _compute(method, [sample.code for sample in block], size, block[0].truncation)
        labels = made.get("labels")
        yield [
            Made(sample, made["image"][n], None if labels is None else labels[n, 0])
            for n, sample in enumerate(block)
        ]


def _compute(
    method: Any, codes: list[Code], size: int, truncation: float
) -> dict[str, NDArray[Any]]:
    """One block of images, as arrays."""
    import torch

    device = next(method.parameters()).device
    full = codes + [codes[-1]] * (size - len(codes))
    values = torch.from_numpy(np.stack([code.values for code in full])).to(device)
    condition = None
    if full[0].condition is not None:
        condition = torch.tensor([code.condition for code in full], device=device)
    try:
        with torch.inference_mode():
            if full[0].space == "w":
                found = {"image": method.synthesize(values)}
            elif full[0].labels is not None:
                stacked = np.stack([code.labels for code in full if code.labels is not None])
                labels = torch.from_numpy(stacked)[:, None].to(device)
                found = {"image": method.paint(labels, values, condition), "labels": labels}
            else:
                found = method.generate(values, condition, truncation=truncation)
            made = {name: value.cpu().numpy() for name, value in found.items()}
    except torch.cuda.OutOfMemoryError as error:
        msg = f"{device} has too little free memory for this model"
        raise InputError(msg, "Use --device cpu, or free memory on the GPU.") from error
    if not np.isfinite(made["image"]).all():
        msg = "the model's images hold values that are not numbers"
        raise InputError(msg, "Check it with `medgen models verify`.")
    return made


def to_style(method: Any, code: Code, truncation: float) -> Code:
    """The style of a latent, pulled towards the condition's mean style."""
    import torch

    if code.space == "w":
        return code
    device = next(method.parameters()).device
    condition = None if code.condition is None else torch.tensor([code.condition], device=device)
    with torch.inference_mode():
        style = method.map(torch.from_numpy(code.values[None]).to(device), condition)
        mean = method.w_mean[code.condition or 0]
        style = mean + truncation * (style[0] - mean)
    return Code(style.float().cpu().numpy(), "w")
