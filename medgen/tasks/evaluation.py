"""``medgen evaluate synthesis``: from folders to numbers, a table and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.devices import resolve_device
from medgen.errors import InputError
from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.detect_files import write_json
from medgen.tasks.evaluate_synthesis import (
    images_sha256,
    measure,
    refuse_other_extractor,
)
from medgen.tasks.evaluation_sets import Loaded, Where, read_sets
from medgen.tasks.output_folder import output_folder, refuse_inside

if TYPE_CHECKING:
    from medgen.features import FeatureExtractor
    from medgen.report.evaluation import Pair

RESULT, TABLE, PAGE, RUN = "evaluation.json", "table.md", "report.html", "run.json"
NAMES = (RESULT, TABLE, PAGE, RUN)
PAIRS_SHOWN = 24
SYNTHETIC, REAL, BOTH = "synthetic only", "real only", "real + synthetic"


@dataclass(frozen=True)
class Options:
    """What is measured, and how.

    Attributes:
        dice: Also train segmentation networks.
        segmentation_steps: Of each of them.
        segmentation_seeds: How many on each set.
        classifier_steps: Of the condition classifier; 0 leaves it out.
        seed: Of everything random.
        device: Where to compute.
        compare: ``evaluation.json`` of earlier evaluations.
    """

    dice: bool = False
    segmentation_steps: int = 1000
    segmentation_seeds: int = 3
    classifier_steps: int = 300
    seed: int = 0
    device: str = "cpu"
    compare: tuple[Path, ...] = field(default_factory=tuple)


def evaluate(
    real: Path,
    fake: Path,
    output: Path,
    extractor: FeatureExtractor,
    *,
    train: Path | None = None,
    where: Where | None = None,
    options: Options | None = None,
    overwrite: bool = False,
    command: str = "evaluate synthesis",
) -> dict[str, Any]:
    """Measure the images of folders and write :data:`NAMES` into ``output``.

    Returns:
        The contents of ``evaluation.json``: those of
        :func:`~medgen.tasks.evaluate_synthesis.measure`, ``segmentation``, ``model``, ``notes``.

    Raises:
        InputError: Bad input, too few images, or an earlier evaluation of another extractor, size
            or set of real images.
        LeakageError: A held-out image or patient was trained on.
    """
    wish, timings = options or Options(), dict[str, float]()
    device = resolve_device(wish.device)
    refuse_inside(output, real)
    refuse_inside(output, fake)
    earlier = [(_name(path), _earlier(path)) for path in wish.compare]
    with output_folder(output, NAMES, overwrite=overwrite) as draft:
        with timed(timings, "read"):
            loaded = read_sets(real, fake, train, where or Where())
        _refuse_early(earlier, extractor, loaded)
        with timed(timings, "measure"):
            result = measure(
                loaded.real, loaded.fake, loaded.train, extractor, seed=wish.seed,
                condition_names=loaded.condition_names, classifier_steps=wish.classifier_steps,
                device=device,
            )  # fmt: skip
        result |= {"model": loaded.model, "notes": list(loaded.notes)}
        if wish.dice:
            with timed(timings, "segmentation"):
                result["segmentation"] = _segmentation(loaded, wish, device)
        write_json(draft / RESULT, result)
        _draw(result, loaded, earlier, draft, fake.name)
        record = run_record(
            command,
            inputs=[fingerprint(path) for path in (real, fake, train) if path is not None],
            outputs=[draft / name for name in NAMES if name != RUN],
            timings=timings,
            extractor=extractor.describe(),
            device=device,
            seed=wish.seed,
            notes=list(loaded.notes),
        )
        write_json(draft / RUN, record)
    return result


def _earlier(path: Path) -> dict[str, Any]:
    """An earlier ``evaluation.json``, given itself or by its folder."""
    file = path / RESULT if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        complete = {"extractor", "metrics", "size", "images", "real_sha256"} <= set(found)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read the earlier evaluation {file}: {error}") from error
    if not complete:
        raise InputError(f"{file} is no evaluation of synthetic images")
    return found


def _name(path: Path) -> str:
    return path.parent.name if path.name == RESULT else path.name


def _refuse_early(
    earlier: Sequence[tuple[str, dict[str, Any]]], extractor: FeatureExtractor, loaded: Loaded
) -> None:
    """Refuse what cannot be compared before anything is measured."""
    coming = {
        "extractor": extractor.describe(),
        "size": list(loaded.real.images.shape[1:]),
        "images": {"real": len(loaded.real)},
        "real_sha256": images_sha256(loaded.real.images),
    }
    refuse_other_extractor([("this evaluation", coming), *earlier])


def _segmentation(loaded: Loaded, wish: Options, device: str) -> dict[str, Any]:
    """Dice of networks trained on synthetic, real, and both."""
    real, fake, train = loaded.real, loaded.fake, loaded.train
    if fake.labels is None or real.labels is None:
        missing = "FAKE" if fake.labels is None else "REAL"
        msg = f"Dice needs label maps, but {missing} has none"
        raise InputError(msg, "Give folders with images/ and labels/ (or .npz), or omit --dice.")
    sets: dict[str, Any] = {SYNTHETIC: fake}
    if train is not None and train.labels is not None:
        sets |= {REAL: train, BOTH: (train, fake)}
    from medgen.tasks.segmentation import segmentation_dice

    every = [s.labels for s in (real, fake, train) if s is not None and s.labels is not None]
    return segmentation_dice(
        sets, real, label_count=1 + max(int(labels.max()) for labels in every),
        steps=wish.segmentation_steps, device=device,
        seeds=tuple(range(wish.seed, wish.seed + wish.segmentation_seeds)),
    )  # fmt: skip


def _draw(
    result: dict[str, Any],
    loaded: Loaded,
    earlier: Sequence[tuple[str, dict[str, Any]]],
    folder: Path,
    title: str,
) -> None:
    from medgen.report.evaluation import markdown, write_page

    (folder / TABLE).write_text(markdown(result, earlier), encoding="utf-8")
    write_page(result, _pairs(result, loaded), folder / PAGE, title=title)


def _pairs(result: dict[str, Any], loaded: Loaded) -> list[Pair]:
    """The synthetic images nearest to a training image, nearest first."""
    near = result.get("nearest_training")
    if near is None or loaded.train is None:
        return []
    from medgen.report.evaluation import Pair

    order = np.argsort(near["distance"], kind="stable")[:PAIRS_SHOWN]
    names, condition = loaded.condition_names, loaded.fake.condition
    return [
        Pair(
            _picture(loaded.fake.images[number]),
            _picture(loaded.train.images[near["index"][number]]),
            near["distance"][number],
            f"image {number}" + (f", {names[condition[number]]}" if condition is not None else ""),
        )
        for number in order.tolist()
    ]


def _picture(image: NDArray[np.float32]) -> str:
    """A data URI of ``(C, X, Y[, Z])``, of a volume its middle slice."""
    from medgen.report.picture import data_uri

    flat = image[..., image.shape[-1] // 2] if image.ndim == 4 else image
    pixels = np.round((flat.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(2, 1, 0)
    return data_uri(pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2), "png")
