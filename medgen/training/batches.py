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
    "mixed": ("medgen.mixed_sets", "Mixed"),
    "images": ("medgen.image_sets", "Images"),
    "taught": ("medgen.training.taught", "Taught"),
    "annotated": ("medgen.annotated_sets", "AnnotatedImages"),
    "annotated_joint": ("medgen.training.joint_labels", "JointLabels"),
    "annotated_brain": ("medgen.annotated_brain", "AnnotatedBrain"),
    "mixture": ("medgen.toy", "MixtureSource"),
    "restoration": ("medgen.restoration_sets", "RestorationSource"),
    "domains": ("medgen.domain_sets", "Domains"),
    "normals": ("medgen.normal_sets", "Normals"),
}


class Source(Protocol):
    """Where batches come from: a pure function of its settings and a number.

    For methods that restore, a batch holds ``image`` with simulated anomalies and ``healthy``
    without, both ``(B, C, *spatial)``; and ``anomaly`` and ``mask`` ``(B, 1, *spatial)``, 0 or 1.

    For restoration methods, it holds ``image`` ``(B, slices * C, *spatial)``, damaged, the
    ``target`` of the middle slice and its ``mask`` ``(B, 1, *spatial)``, where the result counts;
    the source then names its ``channels`` (of one slice) and ``out_channels``. See
    :mod:`medgen.restoration_sets` and :mod:`medgen.domain_sets`.

    For methods that sample, it holds ``image`` ``(B, C, *spatial)`` in -1..1 and, as the data
    have them, ``condition`` ``(B,)`` and ``labels`` ``(B, 1, *spatial)``, both int64; the source
    then names them in ``condition_names`` and ``label_names`` (the background's name first).
    It may have ``facts``, what to tell and record about the data.
    """

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``."""

    def validation_batch(self, index: int) -> Batch:
        """Batch number ``index`` from subjects that are never trained on."""


def build_source(config: TrainingConfig, method: Any) -> Source:
    """The source that ``config.data`` asks for.

    Seed, batch size, dimensions, input slices, channels and size that ``data`` leaves out are
    those of the run and of the method.

    Raises:
        InputError: The kind or a setting is unknown, or the data do not fit the method.
        LeakageError: The data are on both sides of the split.
    """
    values = dict(config.data)
    kind = values.pop("kind", None)
    if kind not in SOURCES:
        raise InputError(f"data.kind must be one of {', '.join(SOURCES)}, got {kind!r}")
    module, name = SOURCES[kind]
    cls = getattr(import_module(module), name)
    shared = {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "spatial_dims": method.spatial_dims,
        "input_slices": method.input_slices,
        "channels": getattr(method, "channels", getattr(method.config, "channels", None)),
        "size": getattr(method, "image_size", None) if can_sample(method) else None,
    }
    known = {
        key: value
        for key, value in shared.items()
        if value is not None and key in cls.Config.model_fields
    }
    settings = validated(cls.Config, {**known, **values}, "data")
    for key in ("spatial_dims", "input_slices", "channels"):
        if key in known and getattr(settings, key) != known[key]:
            msg = f"data.{key} is {getattr(settings, key)}, but the method needs {known[key]}"
            raise InputError(msg)
    source: Source = cls(settings)
    _require_fit(kind, source, method)
    return source


def in_words(facts: Mapping[str, Any]) -> str:
    """What a set of images is made of, or several sets are, in one line."""
    if "sets" in facts:
        parts = (f"{name}: {in_words(own)}" for name, own in facts["sets"].items() if own)
        return "; ".join(parts)
    conditions = ", ".join(f"{name} {count}" for name, count in facts["conditions"].items())
    return (
        f"{facts['images']} images of {facts['groups']} groups to train on"
        f"{f' ({conditions})' if conditions else ''}, "
        f"{facts['held_out_images']} of {facts['held_out_groups']} held out"
    )


def can_sample(method: Any) -> bool:
    """Whether a method makes images from a latent (the capability ``Samples``)."""
    return hasattr(method, "generate")


def _require_fit(kind: str, source: Any, method: Any) -> None:
    """Refuse data that a method cannot learn from."""
    _require_restoration_fit(kind, source, method)
    sets = hasattr(source, "condition_names")
    if can_sample(method) and not sets:
        raise InputError(
            f"data.kind {kind!r} draws pairs to restore, but the method makes images",
            "Use data.kind images or annotated.",
        )
    if sets and hasattr(method, "predict") and not can_sample(method):
        raise InputError(
            f"data.kind {kind!r} has no pairs to restore, which the method needs",
            "Use data.kind label_maps, normals or phantoms.",
        )
    size = getattr(source, "image_size", None)
    if can_sample(method) and size is not None and tuple(size) != tuple(method.image_size):
        raise InputError(
            f"data.size is {tuple(size)}, but the method makes {tuple(method.image_size)}",
            "Set config.image_size and data.size alike, or leave data.size out.",
        )
    labels = getattr(method.config, "labels", None) if can_sample(method) else None
    known = len(getattr(source, "label_names", ()))
    if labels is not None and labels != known:
        raise InputError(
            f"config.labels is {labels}, but the data have {known or 'no'} labels, the background "
            "included",
            f"Set config.labels to {known}." if known else "Use data.kind annotated.",
        )
    wanted = int(getattr(method, "conditions", 0))
    found = tuple(getattr(source, "condition_names", ()))
    if wanted and wanted != len(found):
        raise InputError(
            f"config.conditions is {wanted}, but the data have {len(found) or 'no'} condition(s)"
            f"{': ' if found else ''}{', '.join(found)}",
            "Put the images of each condition into a subfolder of its own, or set "
            f"config.conditions to {len(found) if len(found) > 1 else 0}.",
        )


def _require_restoration_fit(kind: str, source: Any, method: Any) -> None:
    """Restoration methods learn from damaged images and their targets, and no others do."""
    restores, pairs = hasattr(method, "out_channels"), hasattr(source, "out_channels")
    if restores and not pairs:
        raise InputError(
            f"data.kind {kind!r} has no damaged images and targets, which the method needs",
            "Use data.kind restoration or domains.",
        )
    if pairs and not restores:
        raise InputError(
            f"data.kind {kind!r} is for methods of inpainting, super-resolution, denoising and "
            "translation",
            "Use data.kind label_maps, normals, phantoms, images or annotated.",
        )
    if not pairs:
        return
    for key, what in (("channels", "one input slice"), ("out_channels", "the target")):
        given, wanted = getattr(source, key), getattr(method, key)
        if given != wanted:
            # A hole is not counted by every method's settings.
            fitting = getattr(method.config, key, wanted) + given - wanted
            raise InputError(
                f"the data have {given} channel(s) in {what}, but the method takes {wanted}",
                f"Set config.{key} to {fitting}.",
            )


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
