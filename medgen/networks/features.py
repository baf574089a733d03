"""The small residual network that measures images, and reading one that was trained.

A method built on features that somebody else learnt holds its own copy of the network, so that
its package is complete. The weights come from the folder of a package or of a training run of
``selfsup``, once, when training begins.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.run_record import hash_file

COLOUR = 3  # channels that an extractor sees
SHIPPED = Path(__file__).parents[1] / "models"
# What a package and a training run keep: their record, and their weights.
RECORDS = {"medgen.json": "weights.safetensors.xz", "training.json": "weights.safetensors"}
# Unpacked; no extractor of this kind is near it.
LARGEST_BYTES = 2**30


def feature_network(widths: Sequence[int], channels: int, dimension: int) -> nn.Module:
    """A ResNet-10 of small width (He et al. 2016), for 2-D images ``(B, C, X, Y)``.

    Its last layer is linear, so that averaging over places before or after it is the same.

    Args:
        widths: Channels of the four stages, at 1/2, 1/4, 1/8 and 1/16 of the size.
        channels: Of an image.
        dimension: Length of the feature vector.
    """
    network: nn.Module = ResNet(
        "basic",
        [1, 1, 1, 1],
        list(widths),
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_size=5,
        conv1_t_stride=2,
        no_max_pool=True,
        bias_downsample=False,
        num_classes=dimension,
    )
    return network


class FrozenFeatures(nn.Module):
    """Stages of a network that was trained elsewhere and stays as it is.

    It looks at 2-D images: volumes are seen as axial slices. Three channels are seen in colour,
    otherwise each by itself, in grey.

    Args:
        widths: Channels of the four stages of the network.
        stages: Which of them, 1 to 4, describe an image.

    Attributes:
        length: Features of a place.
    """

    def __init__(self, widths: Sequence[int], stages: Sequence[int]) -> None:
        super().__init__()
        self.widths, self.stages = tuple(widths), frozenset(stages)
        self.length = sum(widths[number - 1] for number in self.stages)
        network = feature_network(widths, COLOUR, dimension=1)
        for part in ("fc", *[f"layer{n}" for n in range(max(stages) + 1, 5)]):
            setattr(network, part, None)  # is not needed
        self.network = network.requires_grad_(False).eval()

    def copy_weights(self, extractor: str) -> None:
        """Take the weights of a trained extractor, see :func:`read_extractor`.

        Raises:
            InputError: There is none, or its network is another.
        """
        config, weights = read_extractor(extractor)
        found = tuple(config["widths"])
        if found != self.widths:
            raise InputError(
                f"the extractor {extractor!r} has stages of {found} channels, but the method was "
                f"built for {self.widths}",
                "Use an extractor of this size, or set config.widths if the method has it.",
            )
        self.network.load_state_dict({name: weights[name] for name in self.network.state_dict()})

    def train(self, mode: bool = True) -> FrozenFeatures:
        """It never trains; its batch normalisation keeps its statistics."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """What each of the stages sees of images ``(B, C, *spatial)`` in 0..1.

        Returns:
            ``(N, width, X / 2^n, Y / 2^n)`` for each stage n, from the first on; N counts images,
            then slices, then channels that are seen by themselves.
        """
        slices = image.movedim(-1, 1).flatten(0, 1) if image.ndim == 5 else image
        shown = slices if image.shape[1] == COLOUR else slices.flatten(0, 1)[:, None]
        network: Any = self.network
        value = 2 * shown.expand(-1, COLOUR, -1, -1) - 1
        value = network.act(network.bn1(network.conv1(value)))
        found = []
        for number in range(1, max(self.stages) + 1):
            value = getattr(network, f"layer{number}")(value)
            if number in self.stages:
                found.append(value)
        return found

    def places(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """What all of the stages see, brought to one grid.

        Args:
            image: ``(B, C, X, Y[, Z])`` in 0..1.
            size: Places along X and Y.

        Returns:
            ``(B, features, *size[, Z])``; channels that are seen by themselves one after the other.
        """
        found = torch.cat(
            [F.interpolate(stage, size, mode="bilinear", antialias=True) for stage in self(image)],
            1,
        )
        seen_alone = 1 if image.shape[1] == COLOUR else image.shape[1]
        found = found.unflatten(0, (-1, seen_alone)).flatten(1, 2)
        return found.unflatten(0, (len(image), -1)).movedim(1, -1) if image.ndim == 5 else found


def read_extractor(name_or_folder: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights (of :func:`feature_network`) of a trained ``selfsup``.

    Args:
        name_or_folder: A shipped package, or the folder of any package or training run.

    Raises:
        InputError: There is none, it is damaged, or it is not of ``selfsup``.
    """
    folder = Path(name_or_folder).expanduser()
    folder = folder if folder.is_dir() else SHIPPED / name_or_folder
    record = next((name for name in RECORDS if (folder / name).is_file()), None)
    if record is None:
        raise InputError(
            f"there is no feature extractor {name_or_folder!r}",
            "Give medgen-features, or the folder of a package or training run of selfsup.",
        )
    weights = folder / RECORDS[record]
    try:
        said = json.loads((folder / record).read_text(encoding="utf-8"))
        if record == "medgen.json":
            _require_hash(weights, said["sha256"][weights.name])
        else:
            said = said["config"]
        method, config = said["method"], said["config"]
        tensors = load(_unpacked(weights))
    except (OSError, ValueError, KeyError, lzma.LZMAError, SafetensorError) as error:
        raise InputError(f"the feature extractor in {folder} is damaged: {error}") from error
    if method != "selfsup":
        raise InputError(f"{folder} holds {method!r}, which gives no features; use selfsup")
    own = {
        name.removeprefix("network."): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if name.startswith("network.")
    }
    return config, own


def _require_hash(path: Path, wanted: str) -> None:
    found = hash_file(path)
    if found != wanted:
        msg = f"{path} has SHA-256 {found}, but its package says {wanted}"
        raise InputError(msg, "The file was changed: copy the package again.")


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".xz":
        return content
    unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_BYTES)
    return unpack.decompress(content, max_length=LARGEST_BYTES)
