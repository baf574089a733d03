"""Package a generator: what it makes, how near that is to what it was trained on, and pictures.

Features of all training images go with it, so that whoever makes an image can be told how near it
is to the nearest of them, and how near held-out real images are. Nobody can see an image in them.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medgen.config import Config
from medgen.errors import InputError
from medgen.manifest import Extractor, Synthesis
from medgen.package import ATTRIBUTES, TRAINING_FEATURES, ModelPackage, save_package
from medgen.tasks.latents import Code, Sample, draw
from medgen.tasks.nearest import feature_arrays
from medgen.tasks.pack_recipe import (
    Recipe,
    Run,
    data_table,
    metrics_table,
    training_section,
    with_facts,
)
from medgen.tasks.running import Progress
from medgen.tasks.sampling import has_styles, render, to_style
from medgen.training.config import validated

if TYPE_CHECKING:
    from medgen.features import FeatureExtractor

SAMPLES = "samples.jpg"
SHOWN = 32
SHEET_EDGE = 1000  # pixels of the card's picture, at most
GOLDEN = 2
# Images taken of a source that draws them without end.
DRAWN, DRAWN_HELD_OUT = 1000, 250

Images = NDArray[np.float32]

# Measures of an image (C, *spatial) in -1..1 that a set can be chosen by.
MEASURES: dict[str, Callable[[Images], float]] = {
    # Empty glass, and so the lumen of a gland, is white on a stained slide.
    "white_fraction": lambda image: float((image.min(axis=0) > 0.6).mean()),
    "brightness": lambda image: float(image.mean()),
}


class AttributeRecipe(Config):
    """Two sets of made images of each condition: those with most and least of a measure."""

    name: str = Field(pattern="^[a-z0-9_]+$", description="of the sets: NAME and no_NAME")
    measure: str = Field(description="white_fraction or brightness")
    images: int = Field(2000, ge=20, description="made of each condition")
    share: float = Field(0.1, gt=0, le=0.5, description="of them in each of the two sets")


class SynthesisRecipe(Recipe):
    """What a generator's images stand for."""

    task: Literal["synthesize"]
    synthesis: dict[str, Any] = Field(
        {}, description="keys of the manifest's `synthesis` that the run does not know"
    )
    extractor: str = Field("medgen-features", description="measures the training images")
    attributes: tuple[AttributeRecipe, ...] = ()


def pack_generator(
    run: Run,
    recipe: SynthesisRecipe,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ModelPackage:
    """Measure the training images and write the package.

    Raises:
        InputError: The run trained no generator, its data are gone, or the folder exists.
    """
    from medgen.features import FeatureExtractor
    from medgen.training.batches import build_source

    method = run.method
    if not hasattr(method, "generate"):
        raise InputError(f"method {run.config.method!r} makes no images")
    # The first data set is the one of the run; others went into its label maps or shapes.
    first = [with_facts(data, run.record.get("source", {})) for data in recipe.training_data[:1]]
    known = (*first, *recipe.training_data[1:])
    recipe = recipe.model_copy(update={"training_data": known})
    report = progress or (lambda _done, _total: None)
    extract = FeatureExtractor.load(recipe.extractor)
    source: Any = build_source(run.config, method)
    if hasattr(source, "pairs"):
        msg = "this run learned labels as channels of the image, which no package can hold"
        raise InputError(msg, "Train the method `spade` for annotated images.")
    report(0, 3)
    features = _training_features(source, extract)
    report(1, 3)
    synthesis = _synthesis(recipe, run.record, source, extract)
    names = synthesis.condition_names
    arrays: dict[str, dict[str, NDArray[Any]]] = {TRAINING_FEATURES: features}
    if recipe.attributes:
        arrays[ATTRIBUTES] = _attributes(method, recipe.attributes, names)
    report(2, 3)
    described: dict[str, Any] = {
        **recipe.described(),
        "task": "synthesize",
        "synthesis": synthesis,
    }
    shared: dict[str, Any] = {
        "golden": _golden(method), "arrays": arrays, "half_precision": True, **described,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        draft = save_package(Path(folder) / recipe.name, method, card="", **shared)
        picture = _picture(draft)
    card = _card(recipe, run, synthesis, features)
    package = save_package(
        output, method, card=card, files={SAMPLES: picture}, overwrite=overwrite, **shared
    )
    report(3, 3)
    return package


def _synthesis(
    recipe: SynthesisRecipe, record: dict[str, Any], source: Any, extract: FeatureExtractor
) -> Synthesis:
    dims = len(source.image_size)
    upright = "RAS" if dims == 3 else "LP" if getattr(source, "y_down", True) else "RA"
    known = {
        "condition_names": record.get("condition_names", ()),
        "label_names": record.get("label_names", ()),
        "orientation": upright,
        "extractor": Extractor(name=extract.name, sha256=extract.sha256),
    }
    return validated(Synthesis, {**known, **recipe.synthesis}, "synthesis in the recipe")


def _training_features(source: Any, extract: FeatureExtractor) -> dict[str, NDArray[Any]]:
    """Features of the training images, and distances of held-out real ones to them."""
    training, conditions = _images_of(source, "training", DRAWN)
    held_out: Images = np.zeros((0, *training.shape[1:]), np.float32)
    if source.facts.get("held_out_groups"):
        held_out, _ = _images_of(source, "held_out", DRAWN_HELD_OUT)
    return feature_arrays(extract, training, held_out, conditions)


def _images_of(
    source: Any, side: Literal["training", "held_out"], drawn: int
) -> tuple[Images, NDArray[np.int64] | None]:
    """Images of one side in -1..1 and their conditions; of a source without end, so many."""
    from medgen.image_sets import to_signed

    kept = getattr(source, side, None)
    if kept is not None:
        conditions = kept[-1].numpy() if source.condition_names else None
        return to_signed(kept[0]).numpy(), conditions
    take = source.batch if side == "training" else source.validation_batch
    batches = [take(n) for n in range(math.ceil(drawn / source.config.batch_size))]
    images = np.concatenate([batch["image"].numpy() for batch in batches])
    if not source.condition_names:
        return images, None
    return images, np.concatenate([batch["condition"].numpy() for batch in batches])


def _attributes(
    method: Any, recipes: Sequence[AttributeRecipe], names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Mean codes of the images with most and least of a measure, by ``condition:name``."""
    means: dict[str, NDArray[np.float32]] = {}
    for recipe in recipes:
        if recipe.measure not in MEASURES:
            known = ", ".join(MEASURES)
            raise InputError(f"unknown measure {recipe.measure!r}; expected one of {known}")
        conditions: list[tuple[int | None, str]] = [*enumerate(names)] or [(None, "")]
        for number, condition in conditions:
            codes = [
                Code(draw(method.latent_shape, 0, n), "z", number) for n in range(recipe.images)
            ]
            samples = [Sample(n, code, "", None, 0, 1.0, {}) for n, code in enumerate(codes)]
            measure = MEASURES[recipe.measure]
            values = [measure(made.image) for block in render(method, samples, "cpu")
                      for made in block]  # fmt: skip
            order = np.argsort(values, kind="stable")
            count = max(1, round(recipe.share * recipe.images))
            prefix = f"{condition}:" if condition else ""
            means[f"{prefix}{recipe.name}"] = _mean_code(method, [codes[n] for n in order[-count:]])
            means[f"{prefix}no_{recipe.name}"] = _mean_code(
                method, [codes[n] for n in order[:count]]
            )
    return means


def _mean_code(method: Any, codes: Sequence[Code]) -> NDArray[np.float32]:
    if has_styles(method):
        codes = [to_style(method, code, 1.0) for code in codes]
    return np.mean([code.values for code in codes], axis=0).astype(np.float32)


def _golden(method: Any) -> dict[str, NDArray[Any]]:
    """Latents of the first images of seed 0; of volumes, which are large, of the first one."""
    count = GOLDEN if method.spatial_dims == 2 else 1
    found: dict[str, NDArray[Any]] = {
        "latent": np.stack([draw(method.latent_shape, 0, n) for n in range(count)])
    }
    if method.conditions:
        found["condition"] = np.arange(count, dtype=np.int64) % method.conditions
    return found


def _picture(package: ModelPackage) -> bytes:
    """The first images of seed 0, which nobody selected, as JPEG."""
    import PIL.Image

    from medgen.tasks.synthesize import synthesize
    from medgen.tasks.synthesize_files import draw_sheet

    sheet, file = io.BytesIO(), io.BytesIO()
    draw_sheet(synthesize(package, n=SHOWN, device="cpu"), sheet)
    picture = PIL.Image.open(sheet).convert("RGB")
    picture.thumbnail((SHEET_EDGE, SHEET_EDGE))
    picture.save(file, format="JPEG", quality=78, optimize=True, progressive=True)
    return file.getvalue()


def _card(
    recipe: SynthesisRecipe,
    run: Run,
    synthesis: Synthesis,
    features: dict[str, NDArray[Any]],
) -> str:
    """The model card."""
    record, facts = run.record, run.record.get("source", {})
    warned = sorted({str(entry.get("warning")) for entry in record.get("warnings", ())})
    known = {
        "Images": " x ".join(map(str, run.method.image_size))
        + {1: ", grey", 3: ", colour"}.get(run.method.channels, ""),
        "Conditions": ", ".join(synthesis.condition_names) or "none",
        "Labels": ", ".join(synthesis.label_names) or "none",
        "Default truncation": f"{synthesis.default_truncation:g}",
        "Training images": str(facts.get("images", "drawn without end")),
        "Groups trained on / held out": f"{facts.get('groups', '?')} / "
        f"{facts.get('held_out_groups', '?')}",
        "Features of": f"{len(features['features'])} training images, and distances of "
        f"{len(features.get('held_out_distances', ()))} held-out real ones "
        f"({synthesis.extractor.name if synthesis.extractor else 'none'})",
        "Warnings while training": ", ".join(warned) or "none",
    }
    rows = "\n".join(f"| {name} | {text} |" for name, text in known.items())
    sets = "".join(
        f"\n- `{a.name}` and `no_{a.name}`: of {a.images} made images of each condition the "
        f"{a.share:.0%} with most and least {a.measure.replace('_', ' ')}"
        for a in recipe.attributes
    )
    return f"""# {recipe.name} {recipe.version}

{recipe.summary}

![The first {SHOWN} images of seed 0, not selected; all are synthetic]({SAMPLES})

## Intended use

{recipe.intended_use}

Every image it makes is marked as synthetic in its file; none is the scan of a patient.

## Limitations

{recipe.limitations}

## What it makes

| | |
|---|---|
{rows}
{f"{chr(10)}Sets for arithmetic:{chr(10)}{sets}{chr(10)}" if sets else ""}
## Training

{training_section(recipe, record)}

{data_table(recipe)}

## Measured

{metrics_table(recipe)}
"""
