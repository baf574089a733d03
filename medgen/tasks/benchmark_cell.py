"""One cell of a synthesis benchmark: a method and a seed, trained, sampled and measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from medgen.annotated_sets import AnnotatedConfig, AnnotatedImages, jittered, read_case
from medgen.errors import InputError
from medgen.features import FeatureExtractor
from medgen.image_sets import Item, mixed_up, to_signed
from medgen.methods import build, registered
from medgen.tasks.benchmark_plan import (
    DEFORMED,
    REAL,
    SUITES,
    UNTRAINED,
    BenchmarkSettings,
    Contender,
    budget,
)
from medgen.tasks.benchmark_runs import RESULT, trained
from medgen.tasks.detect_files import write_json
from medgen.tasks.evaluate_synthesis import measure
from medgen.tasks.image_set import ImageSet
from medgen.tasks.segmentation import segmentation_dice
from medgen.training.joint_labels import separate
from medgen.training.loop import WEIGHTS

SAMPLES = "samples.npz"
# Latents must not be those of another seed or of training.
LATENT_SEED = 7_919
# Strength of the deformation of real pairs; see annotated_sets.jittered.
DEFORMATION = 1.5
SYNTHETIC, MIXED = "synthetic only", "real + synthetic"


@dataclass(frozen=True, eq=False)
class Pairs:
    """An annotated set, split by patient.

    Attributes:
        train: Slices to train on.
        test: Slices of other patients.
        label_names: The background's first.
        facts: Numbers of images and patients.
    """

    train: ImageSet
    test: ImageSet
    label_names: tuple[str, ...]
    facts: dict[str, Any]


def read_pairs(dataset: Path, settings: BenchmarkSettings) -> Pairs:
    """The slices of an annotated set on both sides of the split.

    Raises:
        InputError: The set is not annotated, damaged, or has too few patients.
        LeakageError: A patient or an image would be on both sides.
    """
    _require_annotated(dataset)
    source = AnnotatedImages(AnnotatedConfig.model_validate(_data(dataset, settings)))
    order = mixed_up(0, len(source.held_out[0]))
    held_out = [torch.empty_like(values) for values in source.held_out]
    for plain, mixed in zip(held_out, source.held_out, strict=True):
        plain[order] = mixed
    return Pairs(
        _image_set(source.training, source.items("train")),
        _image_set(held_out, source.items("held_out")),
        source.label_names,
        {key: source.facts[key] for key in ("images", "held_out_images", "groups",
                                            "held_out_groups")},
    )  # fmt: skip


def _require_annotated(dataset: Path) -> None:
    if not dataset.is_dir():
        raise InputError(f"there is no folder at {dataset}", "Give the folder of an annotated set.")
    folders = [dataset, *(path for path in dataset.iterdir() if path.is_dir())]
    pairs = any((f / "images").is_dir() and (f / "labels").is_dir() for f in folders)
    if not pairs and not any(any(f.glob("*.npz")) for f in folders):
        raise InputError(
            f"{dataset} is not annotated: it holds neither .npz files nor folders images/ and "
            "labels/",
            "The benchmark trains segmentation, so it needs a label map for every image.",
        )


def _data(dataset: Path, settings: BenchmarkSettings) -> dict[str, Any]:
    size = {"size": settings.size, "fit": "resample"}
    return {"folder": str(dataset), "validation_fraction": settings.held_out, **size}


def _image_set(tensors: Any, items: list[Item]) -> ImageSet:
    images, labels, _ = tensors
    groups = []
    for item in items:
        shape = read_case(item).image.shape
        groups += [item.group] * (shape[-1] if len(shape) == 4 else 1)
    return ImageSet(to_signed(images).numpy(), labels=labels.long().numpy(), groups=groups)


def run_cell(
    dataset: Path,
    folder: Path,
    settings: BenchmarkSettings,
    name: str,
    seed: int,
    *,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """Train, sample and measure; what was finished earlier in ``folder`` is not done again.

    Args:
        dataset: An annotated set.
        folder: Of this cell.
        settings: The benchmark's.
        name: Of a contender of the suite, or of a baseline.
        seed: Of the data's order, the weights, the samples and the segmentation.
        device: Where to compute.
        threads: Of torch.

    Returns:
        What is written to ``result.json``: ``training``, ``measure`` and ``dice``.
    """
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    pairs = read_pairs(dataset, settings)
    training: dict[str, Any] = {}
    if name == REAL:
        fake = None
    elif name == DEFORMED:
        fake = _deformed(pairs.train, settings.samples, seed)
    else:
        method, training = _trained(dataset, folder, settings, name, seed, device, pairs)
        fake = sample_pairs(method, len(pairs.label_names), settings.samples, seed, device)
    result: dict[str, Any] = {"name": name, "seed": seed, "training": training}
    if fake is not None:
        np.savez_compressed(
            folder / SAMPLES, image=_as_bytes(fake.images), label=_labels(fake).astype(np.uint8)
        )
        extractor = FeatureExtractor.load(settings.features)
        found = measure(
            pairs.test, fake, pairs.train, extractor,
            seed=seed, classifier_steps=0, device=device,
        )  # fmt: skip
        found.pop("nearest_training", None)
        result["measure"] = found
    sets: dict[str, ImageSet | tuple[ImageSet, ...]] = {REAL: pairs.train}
    if fake is not None:
        sets = {SYNTHETIC: fake, MIXED: (pairs.train, fake)}
    result["dice"] = _dice(sets, pairs, settings.segmentation_steps, seed, device)
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_json(folder / RESULT, result)
    return result


def _trained(
    dataset: Path,
    folder: Path,
    settings: BenchmarkSettings,
    name: str,
    seed: int,
    device: str,
    pairs: Pairs,
) -> tuple[Any, dict[str, Any]]:
    """The method with its averaged weights, and what training it took."""
    suite = SUITES[settings.suite]
    contender = next(iter(suite.values())) if name == UNTRAINED else suite[name]
    method_name, config = registered(contender.method, contender.config)
    config |= {"image_size": (settings.size,) * 2, **_sizes(contender, len(pairs.label_names))}
    if name == UNTRAINED:
        torch.manual_seed(seed)
        return build(method_name, config).to(device).eval(), {}
    record = train_method(
        dataset, folder / "training", settings, contender, method_name, config, seed, device
    )
    method: Any = build(method_name, config)
    for part in method.training_only:  # the run's weights leave them out
        setattr(method, part, None)
    method.load_state_dict(load_file(folder / "training" / WEIGHTS))
    kept = {key: record[key] for key in ("step", "seconds", "parameters")}
    return method.to(device).eval(), kept | {"images": record["step"] * contender.batch_size}


def _sizes(contender: Contender, label_count: int) -> dict[str, int]:
    if contender.joint:
        return {"channels": 1 + label_count}
    return {"channels": 1, "labels": label_count}


def train_method(
    dataset: Path,
    folder: Path,
    settings: BenchmarkSettings,
    contender: Contender,
    method: str,
    config: dict[str, Any],
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Train with medgen's loop, going on where an earlier call stopped; its ``training.json``."""
    from medgen.training import TrainingConfig

    steps, minutes = budget(settings, contender)
    kind = "annotated_joint" if contender.joint else "annotated"
    training = TrainingConfig(
        name=method, method=method, config=config, seed=seed, steps=steps, minutes=minutes,
        data={"kind": kind, **_data(dataset, settings)}, batch_size=contender.batch_size,
        schedule="constant", log_every=100, image_every=2500, checkpoint_every=2500,
    )  # fmt: skip
    return trained(training, folder, device)


@torch.inference_mode()
def sample_pairs(
    method: Any, label_count: int, count: int, seed: int, device: str, *, batch: int = 64
) -> ImageSet:
    """Pairs of a trained method, uncurated: the first ``count`` latents of a seed.

    Images are rounded to 8 bits, which is what gets stored.
    """
    generator = torch.Generator().manual_seed(LATENT_SEED + seed)
    latents = torch.randn(count, *method.latent_shape, generator=generator)
    images, labels = [], []
    for part in latents.split(batch):
        made = method.generate(part.to(device))
        image, label = made["image"], made.get("labels")
        if label is None:
            image, label = separate(image, label_count)
        images.append(image.float().clamp(-1, 1).cpu())
        labels.append(label.cpu())
    rounded = to_signed(torch.from_numpy(_as_bytes(torch.cat(images).numpy())))
    return ImageSet(rounded.numpy(), labels=torch.cat(labels).numpy())


def _dice(
    sets: dict[str, ImageSet | tuple[ImageSet, ...]],
    pairs: Pairs,
    steps: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """For each training set the Dice of each test patient, who is only numbered, and label."""
    found = segmentation_dice(
        sets, pairs.test, label_count=len(pairs.label_names), steps=steps, seeds=(seed,),
        device=device, label_names=pairs.label_names,
    )  # fmt: skip
    return {
        name: {"per_patient": list(one["per_patient"].values()), "per_label": one["per_label"]}
        for name, one in found["dice"].items()
    }


def _deformed(train: ImageSet, count: int, seed: int) -> ImageSet:
    """Real training pairs, shifted, scaled and turned: what a network has to beat."""
    generator = torch.Generator().manual_seed(LATENT_SEED + seed)
    chosen = torch.randint(len(train), (count,), generator=generator)
    images, labels = torch.from_numpy(train.images), torch.from_numpy(_labels(train))
    image, label = jittered(images[chosen], labels[chosen], DEFORMATION, generator)
    return ImageSet(image.clamp(-1, 1).numpy(), labels=label.numpy())


def _labels(images: ImageSet) -> NDArray[np.int64]:
    assert images.labels is not None
    return images.labels


def _as_bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round((images + 1) * 127.5).clip(0, 255).astype(np.uint8)
