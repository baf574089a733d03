"""Batches in order, drawn ahead of time; the same ones for any number of worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medgen.errors import InputError
from medgen.training.config import TrainingConfig, validated

Batch = dict[str, Tensor]

# Kinds of training data: module and class. The class names its settings as `Config`.
SOURCES: dict[str, tuple[str, str]] = {
    "label_maps": ("medgen.anatomy", "LabelMapSource"),
    "phantoms": ("medgen.anatomy", "PhantomSource"),
}


class Source(Protocol):
    """Where batches come from: a pure function of its settings and a number.

    A batch holds ``image`` with simulated anomalies and ``healthy`` without, both
    ``(B, C, *spatial)``; and ``anomaly`` and ``mask`` ``(B, 1, *spatial)``, 0 or 1.
    """

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``."""

    def validation_batch(self, index: int) -> Batch:
        """Batch number ``index`` from subjects that are never trained on."""


def build_source(config: TrainingConfig, method: Any) -> Source:
    """The source that ``config.data`` asks for.

    Seed, batch size, dimensions and input slices that ``data`` leaves out are those of the run
    and of the method.

    Raises:
        InputError: The kind or a setting is unknown, or the data do not fit the method.
    """
    values = dict(config.data)
    kind = values.pop("kind", None)
    if kind not in SOURCES:
        raise InputError(f"data.kind must be one of {', '.join(SOURCES)}, got {kind!r}")
    module, name = SOURCES[kind]
    cls = getattr(import_module(module), name)
    shared: Mapping[str, Any] = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "spatial_dims": method.spatial_dims,
        "input_slices": method.input_slices,
    }
    settings = validated(cls.Config, {**shared, **values}, "data")
    for key in ("spatial_dims", "input_slices"):
        wanted, found = shared[key], getattr(settings, key)
        if wanted != found:
            raise InputError(f"data.{key} is {found}, but the method needs {wanted}")
    source: Source = cls(settings)
    return source


class _Timed(Dataset[tuple[Batch, float]]):
    """A batch and the seconds it took to draw it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[Batch, float]:
        # Sums differ in the last bit with the number of threads, and a worker has one.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        start = time.perf_counter()
        try:
            batch = self.source.batch(index)
        finally:
            torch.set_num_threads(threads)
        return batch, time.perf_counter() - start


def batches(source: Source, first: int, stop: int, workers: int) -> Iterator[tuple[Batch, float]]:
    """Batches ``first`` to ``stop - 1`` in order, each with the seconds it took to draw it."""
    loader = DataLoader(
        _Timed(source),
        batch_size=None,
        sampler=range(first, stop),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)
