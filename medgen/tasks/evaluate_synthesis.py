"""Evaluate synthetic images against real ones the model has never seen. Arrays in, numbers out.

Every number comes with its number of images and with the *floor*: the same number for two halves
of the real images that share no group (patient). The halves are smaller than the whole, and small
sets look further apart, so the synthetic images are measured once more at the size of a half
(``at_floor``) and that is what stands beside the floor. With training images given, ``training`` is
what a model that only copied them would get.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError, LeakageError
from medgen.metrics.synthesis import (
    COPY_QUANTILE,
    FEWEST_IMAGES,
    NEIGHBOURS,
    copy_rate,
    coverage,
    frechet_distance,
    group_halves,
    kernel_distance,
    kernel_distance_interval,
    nearest,
    require_images,
)
from medgen.tasks.image_set import ImageSet

if TYPE_CHECKING:
    from medgen.features import FeatureExtractor

__all__ = ["ImageSet", "compare", "measure", "refuse_other_extractor"]

Array = NDArray[Any]
HIGHER, LOWER, LIKE_REAL = "higher", "lower", "like real"


def measure(
    real: ImageSet,
    fake: ImageSet,
    train: ImageSet | None,
    extractor: FeatureExtractor,
    *,
    seed: int = 0,
    repeats: int = 10,
    condition_names: Sequence[str] = (),
    copy_quantile: float = COPY_QUANTILE,
    classifier_steps: int = 300,
    diversity_pairs: int = 300,
    device: str = "cpu",
) -> dict[str, Any]:
    """All metrics of synthetic images that need no label maps.

    Args:
        real: Held-out real images.
        fake: Synthetic images of the same size and channels.
        train: What the model was trained on, for copies; None leaves the copy rate out.
        extractor: Whose features are compared.
        seed: Of halves, pairs, bootstrap and the classifier.
        repeats: How often the real images are halved for the floor.
        condition_names: Name of each condition.
        copy_quantile: Share of held-out real images that count as near a training image.
        classifier_steps: Training steps of each classifier; 0 leaves it out.
        diversity_pairs: Pairs of images for MS-SSIM, at most; 0 leaves it out.
        device: Where to compute features, MS-SSIM and the classifier.

    Returns:
        ``extractor`` (name, sha256, ...), ``images`` (N of each set), ``real_sha256``;
        ``metrics``: for each name a dictionary with ``value``, ``n`` and as far as they apply
        ``interval``, ``floor``, ``floor_sd``, ``at_floor`` (the synthetic value at the floor's N),
        ``floor_n``, ``training``, ``better``; ``left_out``: why MS-SSIM or class accuracy could not
        be measured; ``by_condition`` the distances for each condition; ``nearest_training``: index
        and distance of each synthetic image's nearest training image.

    Raises:
        InputError: Sizes or channels differ, a value lies outside -1..1, or too few images.
        LeakageError: A held-out real image, or its group, is among the training images.
    """
    _check(real, fake, train)
    _refuse_leakage(real, train)
    features = {
        name: extractor(images.images, device=device)
        for name, images in (("real", real), ("fake", fake), ("train", train))
        if images is not None
    }
    result: dict[str, Any] = {
        "extractor": extractor.describe(),
        "images": {name: len(values) for name, values in features.items()},
        "groups": len(set(real.groups)) if real.groups is not None else len(real),
        "size": list(real.images.shape[1:]),
        "real_sha256": images_sha256(real.images),
        "seed": seed,
    }
    metrics = compare(
        features["real"], features["fake"], features.get("train"), real.groups,
        seed=seed, repeats=repeats,
    )  # fmt: skip
    if train is not None:
        turned = [extractor(images, device=device) for images in symmetric(train.images)]
        metrics["copy_rate"], result["nearest_training"] = _copies(
            features, np.concatenate([features["train"], *turned]), real.groups, copy_quantile, seed
        )
    left_out: dict[str, str] = {}
    if diversity_pairs:
        try:
            metrics["ms_ssim"] = _diversity(real, fake, diversity_pairs, seed, device)
        except InputError as error:
            left_out["ms_ssim"] = error.message
    if classifier_steps and real.condition is not None and fake.condition is not None:
        from medgen.tasks.classifier import class_accuracy

        try:
            metrics |= class_accuracy(
                real, fake, features, steps=classifier_steps, seed=seed, device=device
            )
        except InputError as error:
            left_out["class_accuracy"] = error.message
    result |= {"metrics": metrics, "left_out": left_out}
    result["by_condition"] = _by_condition(real, fake, features, condition_names, seed, repeats)
    return result


def compare(
    real: Array,
    fake: Array,
    train: Array | None = None,
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    repeats: int = 10,
) -> dict[str, dict[str, Any]]:
    """FID, KID, precision, recall, density and coverage of features ``(N, D)``, with floors."""
    require_images(len(real), "real")
    require_images(len(fake), "synthetic")

    def numbers(a: Array, b: Array) -> dict[str, float]:
        balls = coverage(a, b, neighbours=min(NEIGHBOURS, len(a) - 1, len(b) - 1))
        distances = {"fid": frechet_distance(a, b), "kid": kernel_distance(a, b)}
        return distances | balls._asdict()

    random = np.random.default_rng(seed)
    floors, at_floor, copied = [], [], []
    size = 0
    for _ in range(repeats):
        one, other = group_halves(len(real), groups, random)
        size = min(len(one), len(fake))
        floors.append(numbers(real[one], real[other][:size]))
        at_floor.append(numbers(real[one], fake[random.permutation(len(fake))[:size]]))
        if train is not None and len(train) >= FEWEST_IMAGES:
            copied.append(numbers(real, train[random.permutation(len(train))[: len(fake)]]))
    found = numbers(real, fake)
    result = {}
    for name, value in found.items():
        floor = [row[name] for row in floors]
        result[name] = {
            "value": value,
            "n": [len(real), len(fake)],
            "at_floor": float(np.mean([row[name] for row in at_floor])),
            "floor": float(np.mean(floor)),
            "floor_sd": float(np.std(floor, ddof=1)) if repeats > 1 else None,
            "floor_n": size,
            "better": LOWER if name in {"fid", "kid"} else HIGHER,
        }
        if copied:
            result[name]["training"] = float(np.mean([row[name] for row in copied]))
    interval = kernel_distance_interval(real, fake, groups=groups, seed=seed)
    result["kid"]["interval"] = [interval.low, interval.high]
    return result


def _check(real: ImageSet, fake: ImageSet, train: ImageSet | None) -> None:
    """Refuse sets that cannot be compared."""
    sets = {"synthetic": fake, **({} if train is None else {"training": train})}
    for name, images in {"real": real, **sets}.items():
        require_images(len(images), name)
        values = images.images
        if not np.isfinite(values).all() or np.abs(values).max() > 1 + 1e-4:
            low, high = float(np.min(values)), float(np.max(values))
            raise InputError(f"{name} images must lie in -1..1, got {low:.3g} to {high:.3g}")
        if values.shape[1:] != real.images.shape[1:]:
            msg = f"{name} images are {values.shape[1:]}, real ones {real.images.shape[1:]}"
            raise InputError(msg, "Bring all images to one size and number of channels first.")


def _refuse_leakage(real: ImageSet, train: ImageSet | None) -> None:
    """No held-out image or patient may be among the training images."""
    if train is None:
        return
    if real.groups is not None and train.groups is not None:
        shared = sorted(set(real.groups) & set(train.groups))
        if shared:
            msg = f"{len(shared)} groups (patients) are both held out and trained on"
            raise LeakageError(f"{msg}, among them {shared[0]!r}", _LEAKAGE_HINT)
    known = set(_digests(train.images))
    # An image of one value, such as an empty slice, is the same in all patients and betrays none.
    same = [
        number
        for number, digest in enumerate(_digests(real.images))
        if digest in known and np.ptp(real.images[number]) > 0
    ]
    if same:
        msg = f"{len(same)} of {len(real)} held-out real images are among the training images"
        raise LeakageError(f"{msg}, the first is number {same[0]}", _LEAKAGE_HINT)


_LEAKAGE_HINT = "Give only images of the held-out split as REAL."


def symmetric(images: Array) -> list[Array]:
    """Mirrored copies: pictures in all other ways they can be turned, volumes left to right.

    A generator may have learned an image by heart and show it mirrored, as training did.
    """
    if images.ndim == 5:
        return [images[:, :, ::-1].copy()]
    flipped = [images[:, :, ::-1], images[..., ::-1], images[:, :, ::-1, ::-1]]
    if images.shape[2] == images.shape[3]:
        flipped += [image.swapaxes(2, 3) for image in (images, *flipped)]
    return [np.ascontiguousarray(image) for image in flipped]


def _copies(
    features: dict[str, Array],
    train: Array,
    groups: Sequence[str] | None,
    quantile: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The copy rate, and each synthetic image's nearest training image, mirrored or not.

    ``train`` holds the features of all training images, then of all their mirrored copies.
    """
    near, index = nearest(features["fake"], train)
    reference, _ = nearest(features["real"], train)
    found = copy_rate(near, reference, groups=groups, quantile=quantile, seed=seed)
    count = len(features["train"])
    row = {
        "value": found.rate,
        "n": [len(reference), len(near), count],
        "interval": list(found.interval),
        "floor": found.held_out_rate,
        "quantile": quantile,
        "threshold": found.threshold,
        "nearer": found.nearer,
        "p_value": found.p_value,
        "better": LOWER,
    }
    return row, {"index": (index % count).tolist(), "distance": [float(d) for d in near]}


def _diversity(
    real: ImageSet, fake: ImageSet, pairs: int, seed: int, device: str
) -> dict[str, Any]:
    """Mean MS-SSIM of pairs within each condition, and that of real pairs of different groups."""
    values = {}
    for name, images in (("real", real), ("fake", fake)):
        first, second = _pairs(images, pairs, np.random.default_rng(seed))
        values[name] = _mean_similarity(images.images, first, second, device)
    row = {"value": values["fake"][0], "interval": values["fake"][1]}
    row |= {"floor": values["real"][0], "floor_interval": values["real"][1]}
    return {**row, "n": [len(real), len(fake)], "pairs": pairs, "better": LIKE_REAL}


def _pairs(images: ImageSet, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Random pairs of different images (and groups) of the same condition."""
    condition = np.zeros(len(images)) if images.condition is None else images.condition
    owner = np.arange(len(images)) if images.groups is None else np.asarray(images.groups)
    first, second = np.triu_indices(len(images), 1)
    allowed = (condition[first] == condition[second]) & (owner[first] != owner[second])
    first, second = first[allowed], second[allowed]
    if not len(first):
        raise InputError("no two images of one condition: diversity is undefined")
    chosen = random.permutation(len(first))[:count]
    return first[chosen], second[chosen]


def _mean_similarity(
    images: Array, first: Array, second: Array, device: str, batch: int = 64
) -> tuple[float, list[float]]:
    """Mean MS-SSIM of pairs and its 95 % normal interval."""
    import torch

    from medgen.metrics.similarity import ms_ssim

    found = []
    for start in range(0, len(first), batch):
        part = slice(start, start + batch)
        a, b = (torch.from_numpy(images[i[part]]).to(device) for i in (first, second))
        found.append(ms_ssim(a, b).cpu().numpy())
    values = np.concatenate(found).astype(np.float64)
    mean, error = float(values.mean()), float(values.std() / np.sqrt(len(values)))
    return mean, [mean - 1.96 * error, mean + 1.96 * error]


def _by_condition(
    real: ImageSet,
    fake: ImageSet,
    features: dict[str, Array],
    names: Sequence[str],
    seed: int,
    repeats: int,
) -> dict[str, Any]:
    """The distances for each condition that both sets have; too small ones say so."""
    if real.condition is None or fake.condition is None:
        return {}
    result: dict[str, Any] = {}
    for number in sorted(set(real.condition.tolist()) & set(fake.condition.tolist())):
        name = names[number] if number < len(names) else str(number)
        mine = real.condition == number
        groups = None if real.groups is None else real.take(mine).groups
        try:
            result[name] = compare(
                features["real"][mine], features["fake"][fake.condition == number],
                groups=groups, seed=seed, repeats=repeats,
            )  # fmt: skip
        except InputError as error:
            result[name] = {"left_out": error.message}
    return result


def refuse_other_extractor(results: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Numbers from different extractors, image sizes or held-out sets do not belong in one table.

    Args:
        results: Name and result of :func:`measure` of each evaluation.

    Raises:
        InputError: Names both extractors and both hashes.
    """
    if not results:
        return
    first_name, first = results[0]
    keys: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
        ("extractor", lambda r: (r["extractor"]["sha256"], r["extractor"]["preprocessing"])),
        ("image size", lambda r: r["size"]),
        ("held-out real images", lambda r: r["real_sha256"]),
    )
    for name, result in results[1:]:
        for what, key in keys:
            if key(result) != key(first):
                one, other = _identity(first), _identity(result)
                msg = f"numbers of different {what} cannot be compared: "
                raise InputError(
                    f"{msg}{first_name} has {one}, {name} has {other}",
                    "Evaluate both again with the same extractor, size and held-out images.",
                )


def _identity(result: dict[str, Any]) -> str:
    extractor = result["extractor"]
    size = " x ".join(map(str, result["size"]))
    real = f"{result['images']['real']} real images {result['real_sha256'][:12]}"
    return f"{extractor['name']} {extractor['sha256']} at {size} on {real}"


def images_sha256(images: Array) -> str:
    """SHA-256 of a set of images, whatever their order."""
    return hashlib.sha256(b"".join(sorted(_digests(images)))).hexdigest()


def _digests(images: Array) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in images]
