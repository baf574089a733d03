"""Real images of two or more domains (MR and CT, say), for methods that translate between them.

Every domain is a subfolder of grey pictures (or volumes). A paired batch holds the same files of
both; an unpaired one never uses that files correspond: each domain is shuffled by itself. Without
a ``source`` and ``target`` an image comes from any domain and is to become one of another.

Neighbouring files are often neighbouring slices of one subject, so files are held out in one piece
from the end of their order, the same names in every domain, with a gap that nobody uses; or by
group, see :mod:`medgen.grouped_files`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from medgen.config import Config
from medgen.errors import InputError
from medgen.grouped_files import PICTURES, VOLUMES, Item, SetConfig, facts, files, split_images
from medgen.image_sets import in_turn, mixed_up, read_image, resampled

Batch = dict[str, Tensor]
Side = Literal["train", "held_out"]


class DomainsConfig(Config):
    """Settings of a set of domains."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for pictures, 3 for volumes")
    folder: Path | None = Field(None, description="folder that holds a subfolder per domain")
    domains: dict[str, str] = Field(
        min_length=2, description="name of each domain and its subfolder; the order counts"
    )
    source: str | None = Field(None, description="domain to translate from; none: any")
    target: str | None = Field(None, description="domain to translate to; none: any other")
    paired: bool = Field(
        False, description="files of one name show the same thing, and methods may know it"
    )
    split: Literal["contiguous", "group"] = Field(
        "contiguous", description="hold out the last files in order, or whole groups"
    )
    held_out_fraction: float = Field(
        0.25, gt=0, lt=1, description="part of the files that is never trained on"
    )
    gap: int = Field(5, ge=0, description="contiguous: files between both sides that nobody uses")
    group_pattern: str | None = Field(
        None, description="group: regular expression whose first (...) is the group in a name"
    )
    seed: int = 0
    batch_size: int = Field(8, ge=1, description="images per batch")
    size: tuple[int, ...] | None = Field(
        None, description="size that images are resampled to; none: as they are stored"
    )
    mirror: bool = Field(True, description="mirror training images left-right at random")
    shift: float = Field(
        0.05, ge=0, lt=0.5, description="largest random shift, as part of the image's size"
    )
    zoom: float = Field(0.1, ge=0, lt=0.5, description="largest random change of size")

    @model_validator(mode="after")
    def _sensible(self) -> DomainsConfig:
        if (self.source is None) != (self.target is None) or (
            self.source is not None and self.source == self.target
        ):
            msg = f"source and target must be two domains or both left out, got {self.source!r} "
            raise ValueError(msg + f"and {self.target!r}")
        for name in (self.source, self.target):
            if name is not None and name not in self.domains:
                msg = f"{name!r} is none of the domains {', '.join(self.domains)}"
                raise ValueError(msg)
        if self.paired and self.source is None:
            raise ValueError("paired needs a source and a target")
        if self.size is not None and len(self.size) != self.spatial_dims:
            raise ValueError(f"size must have {self.spatial_dims} numbers, got {self.size}")
        return self


class Domains:
    """Images of several domains in memory, with 8 bits.

    A batch holds ``image`` ``(B, C, *spatial)`` of the source in 0..1, ``target``
    ``(B, 1, *spatial)`` and a ``mask`` of ones. Between any domains there is no target: ``image``
    has a one-hot plane of the wanted domain for each behind it, and ``domain`` and ``wanted``
    ``(B,)`` number what it is and what it shall be.

    A validation batch is aligned whenever both domains have the same file names, also if training
    is unpaired; if they have not, it holds no ``mask``, because no target says what is right.

    Attributes:
        channels: Channels of an image, the planes included.
        out_channels: 1.
        facts: What the set is made of; groups only as hashes.

    Raises:
        InputError: A folder or partner is missing, images differ in size, or are in colour.
        LeakageError: A group or image would be on both sides of the split.
    """

    Config = DomainsConfig
    out_channels = 1

    def __init__(self, config: DomainsConfig) -> None:
        self.config = config
        self.names = tuple(config.domains)
        self.channels = 1 if config.source is not None else 1 + len(self.names)
        train, held_out = _contiguous(config) if config.split == "contiguous" else _grouped(config)
        self.facts = facts(train, held_out, self.names)
        self._images: dict[tuple[str, str], tuple[list[str], Tensor]] = {}
        for side, items in (("train", train), ("held_out", held_out)):
            for number, name in enumerate(self.names):
                paths = [item.path for item in items if item.condition == number]
                stems = [_stem(path) for path in paths]
                self._images[name, side] = stems, _read_all(paths, config)
        self.image_size = _one_size(self._images)
        if config.paired:
            self._require_partners()

    def items(self, domain: str, side: Side) -> list[tuple[str, Tensor]]:
        """Name and image ``(1, *spatial)`` in 0..1 of every file of a domain, in order."""
        stems, images = self._images[domain, side]
        return [(stem, _unit(image)) for stem, image in zip(stems, images, strict=True)]

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``, moved, zoomed and mirrored at random."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        if config.source is None or config.target is None:
            return self._any_to_any("train", index, generator)
        source, target = (self._images[name, "train"] for name in (config.source, config.target))
        chosen = self._chosen(config.source, "train", index)
        image = _unit(source[1][chosen])
        if not config.paired:
            other = _unit(target[1][self._chosen(config.target, "train", index)])
            return _pair(self._moved(image, generator), self._moved(other, generator))
        places = [target[0].index(source[0][number]) for number in chosen.tolist()]
        moved = self._moved(torch.cat([image, _unit(target[1][places])], dim=1), generator)
        return _pair(moved[:, :1], moved[:, 1:])

    def validation_batch(self, index: int) -> Batch:
        """Batch number ``index`` of held-out images, as they are."""
        config = self.config
        if config.source is None or config.target is None:
            return self._any_to_any("held_out", index, None)
        stems, images = self._images[config.source, "held_out"]
        others, targets = self._images[config.target, "held_out"]
        first = index * config.batch_size
        order = mixed_up(0, len(stems))
        chosen = order[torch.arange(first, first + config.batch_size) % len(stems)].tolist()
        if all(stems[number] in others for number in chosen):
            places = [others.index(stems[number]) for number in chosen]
            return _pair(_unit(images[chosen]), _unit(targets[places]))
        places = [number % len(others) for number in chosen]
        batch = _pair(_unit(images[chosen]), _unit(targets[places]))
        del batch["mask"]
        return batch

    def _any_to_any(self, side: Side, index: int, generator: Generator | None) -> Batch:
        """Images of all domains in turn, each to become another; not moved without a generator."""
        config, count = self.config, len(self.names)
        draw = generator or torch.Generator().manual_seed(index)
        # In no fixed order: methods may treat the parts of a batch differently (StarGAN does).
        domain = (torch.arange(config.batch_size) + index * config.batch_size) % count
        domain = domain[torch.randperm(config.batch_size, generator=draw)]
        wanted = (domain + torch.randint(1, count, domain.shape, generator=draw)) % count
        chosen = {name: self._chosen(name, side, index) for name in self.names}
        stems, shown = [], []
        for place, number in enumerate(domain.tolist()):
            own, images = self._images[self.names[number], side]
            item = int(chosen[self.names[number]][place])
            stems.append(own[item])
            shown.append(images[item])
        image = _unit(torch.stack(shown))
        if generator is not None:
            image = self._moved(image, generator)
        shape = (len(image), count, *[1] * (image.ndim - 2))
        planes = F.one_hot(wanted, count).float().reshape(shape).expand(-1, -1, *image.shape[2:])
        batch = {"image": torch.cat([image, planes], 1), "domain": domain, "wanted": wanted}
        others = [self._images[self.names[number], side] for number in wanted.tolist()]
        if generator is None and all(s in own for s, (own, _) in zip(stems, others, strict=True)):
            pairs = zip(stems, others, strict=True)
            target = _unit(torch.stack([images[own.index(stem)] for stem, (own, images) in pairs]))
            batch |= {"target": target, "mask": torch.ones_like(target)}
        return batch

    def _chosen(self, name: str, side: Side, index: int) -> Tensor:
        """Which images of a domain are in a batch: all in turn, in an order of the domain's own."""
        # Domains of the same size must not walk in step.
        seed = self.config.seed + 7919 * (1 + self.names.index(name))
        count = len(self._images[name, side][0])
        return in_turn(seed, index, self.config.batch_size, count)

    def _moved(self, images: Tensor, generator: Generator) -> Tensor:
        """Each image shifted, zoomed and mirrored; the channels of one alike."""
        config, dims = self.config, images.ndim - 2
        count = len(images)
        scale = torch.exp(config.zoom * (2 * torch.rand(count, generator=generator) - 1))
        matrix = torch.zeros(count, dims, dims + 1)
        for axis in range(dims):
            matrix[:, axis, axis] = scale
        # The grid's last coordinate is the image's first axis: left-right, as stored.
        flips = torch.rand(count, generator=generator) < 0.5
        if config.mirror:
            matrix[flips, dims - 1, dims - 1] *= -1
        shifts = 2 * torch.rand(count, dims, generator=generator) - 1
        matrix[:, :, dims] = 2 * config.shift * shifts
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _require_partners(self) -> None:
        """Every file of the source and target has a partner of the same name."""
        names = [name for name in (self.config.source, self.config.target) if name is not None]
        for side in ("train", "held_out"):
            ours, theirs = (set(self._images[name, side][0]) for name in names)
            alone = sorted(ours ^ theirs)
            if alone:
                raise InputError(
                    f"{len(alone)} files of {' and '.join(names)} have no partner of the same "
                    f"name: {', '.join(alone[:5])}",
                    "Remove them, or set data.paired to false.",
                )


def _pair(image: Tensor, target: Tensor) -> Batch:
    return {"image": image, "target": target, "mask": torch.ones_like(target)}


def _unit(images: Tensor) -> Tensor:
    """0..255 to 0..1."""
    return images.float() / 255


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _in_order(stem: str) -> list[tuple[int, str]]:
    """Sorts numbers in names by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", stem)]


def _found(config: DomainsConfig) -> dict[str, list[Path]]:
    """The files of each domain."""
    if config.folder is None:
        raise InputError("data.folder is not set", "Give it with --set data.folder=FOLDER.")
    endings = PICTURES if config.spatial_dims == 2 else VOLUMES
    found = {}
    for name, subfolder in config.domains.items():
        folder = config.folder / subfolder
        if not folder.is_dir():
            raise InputError(f"there is no folder of the domain {name!r} at {folder}")
        found[name] = files(folder, endings)
        if not found[name]:
            raise InputError(f"there are no images in {folder}: expected {', '.join(endings)}")
    return found


def _contiguous(config: DomainsConfig) -> tuple[list[Item], list[Item]]:
    """The first and the last files by name, the same names in every domain."""
    found = _found(config)
    stems = sorted({_stem(path) for paths in found.values() for path in paths}, key=_in_order)
    stop = round(len(stems) * (1 - config.held_out_fraction))
    sides = set(stems[: max(stop - config.gap, 0)]), set(stems[stop:])
    train, held_out = (
        [
            Item(path, number, _stem(path))
            for number, paths in enumerate(found.values())
            for path in sorted(paths, key=lambda path: _in_order(_stem(path)))
            if _stem(path) in side
        ]
        for side in sides
    )
    for number, name in enumerate(found):
        if not all(any(item.condition == number for item in side) for side in (train, held_out)):
            raise InputError(
                f"domain {name!r} has {len(found[name])} files, too few to hold out "
                f"{config.held_out_fraction:g} of them with a gap of {config.gap}"
            )
    return train, held_out


def _grouped(config: DomainsConfig) -> tuple[list[Item], list[Item]]:
    """Whole groups held out, in all domains alike."""
    _found(config)
    return split_images(
        SetConfig(
            folder=config.folder,
            conditions=config.domains,
            group_pattern=config.group_pattern,
            validation_fraction=config.held_out_fraction,
            spatial_dims=config.spatial_dims,
        )
    )


def _read_all(paths: Sequence[Path], config: DomainsConfig) -> Tensor:
    """Grey images ``(N, 1, *spatial)`` uint8."""
    images: list[Tensor] = []
    for path in paths:
        image = torch.from_numpy(read_image(path)[0])
        if len(image) != 1:
            raise InputError(f"{path} has {len(image)} channels; domains must be grey")
        images.append(image if config.size is None else resampled(image, config.size))
        if images[-1].shape != images[0].shape:
            sizes = [tuple(shown.shape[1:]) for shown in (images[0], images[-1])]
            raise InputError(
                f"the images differ: {paths[0]} is {sizes[0]}, {path} is {sizes[1]}",
                "Set data.size to resample them all.",
            )
    return torch.stack(images)


def _one_size(images: dict[tuple[str, str], tuple[list[str], Tensor]]) -> tuple[int, ...]:
    """The size that the images of all domains have."""
    sizes = {name: tuple(shown.shape[2:]) for (name, _), (_, shown) in images.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"the domains differ in size: {sizes}", "Set data.size to resample them all."
        )
    return next(iter(sizes.values()))
