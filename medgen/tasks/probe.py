"""What is pre-training worth? Classifiers on few labels, beside the same network untrained.

The groups (patients) of a folder are split once: some are held out for testing, and of the rest a
fraction has labels. From these a classifier is fitted on the network's frozen features (``linear``)
or the whole network is trained (``fine-tuned``), once from the pre-trained weights and once from
random ones. All is repeated with other labelled groups, fresh weights and batches for every seed.
Reported is the area under the ROC curve on the held-out groups, of more than two labels the mean of
each against the rest.

Nothing is chosen by the held-out groups, and no network may have seen them: the pre-training of a
run is checked by the hashes of its groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.errors import InputError, LeakageError
from medgen.grouped_files import Item, SetConfig
from medgen.metrics import auroc
from medgen.tasks.classifier import logistic_regression, train_classifier
from medgen.tasks.labelled_images import Labelled, found_images, read_labelled
from medgen.tasks.representation import Representation, fresh, vectors_of
from medgen.tasks.running import Progress
from medgen.tasks.trained import Trained, open_trained

Array = NDArray[Any]

PRETRAINED, RANDOM, PIXELS = "pre-trained", "random", "pixels"
LINEAR, TUNED = "linear", "fine-tuned"
# The baseline without a network: images averaged to so many pixels a side.
PIXEL_GRID = {2: 12, 3: 6}
RESAMPLES = 1000
FINE_TUNE_RATE = 1e-3


@dataclass(frozen=True)
class Options:
    """What is compared, and how.

    Attributes:
        fractions: Parts of the training groups that have labels, ascending.
        seeds: Repetitions.
        fine_tune: Also train whole networks.
        fine_tune_steps: Of each such training.
        device: Where to compute.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 3
    fine_tune: bool = False
    fine_tune_steps: int = 300
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.fractions or any(not 0 < part <= 1 for part in self.fractions):
            raise InputError(f"fractions must be above 0 and at most 1, got {self.fractions}")
        if self.seeds < 1:
            raise InputError(f"seeds must be at least 1, got {self.seeds}")


def probe(
    runs: Sequence[str],
    folder: Path,
    config: Mapping[str, Any],
    options: Options,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare networks with themselves untrained.

    Args:
        runs: Folders of training runs, or packages.
        folder: Of images, one subfolder per label.
        config: Keys of :class:`~medgen.grouped_files.SetConfig` that say how it is split; what is
            left out is as in the first run's training.
        options: What is compared.
        progress: Called with (done, total) classifiers.

    Returns:
        ``rows`` of every classifier, ``curves`` (summary over seeds), ``differences`` (pre-trained
        minus random), and what was compared.

    Raises:
        InputError: Bad data, fewer than two labels, or a label in too few groups.
        LeakageError: A held-out group was trained on.
    """
    opened = [open_trained(run) for run in runs]
    names = _names(opened)
    settings = split_settings(folder, config, opened[0])
    train, test, labels = found_images(settings)
    if len(labels) < 2:
        raise InputError(f"a probe tells labels apart, but {folder} has {len(labels) or 'none'}",
                         "Put the images of each label into a subfolder of its own.")  # fmt: skip
    for name, trained in zip(names, opened, strict=True):
        _refuse_seen(name, trained, test)
    shares = labelled_shares(train, options.fractions, options.seeds)
    bench = _Bench(options, test, progress)
    bench.total = len(opened) * options.seeds * len(options.fractions) * (
        2 + 2 * options.fine_tune) + options.seeds * len(options.fractions)  # fmt: skip
    for number, (name, trained) in enumerate(zip(names, opened, strict=True)):
        pool, held_out = read_labelled(train, trained), read_labelled(test, trained)
        if number == 0:
            bench.compare_pixels(pool, held_out, shares)
        bench.compare(name, trained, pool, held_out, shares)
    return {
        "labels": list(labels),
        "images": {"training": len(train), "held_out": len(test)},
        "groups": {side: len({item.group for item in items})
                   for side, items in (("training", train), ("held_out", test))},
        "models": [{"name": name, "method": t.method_name, "sha256": t.sha256,
                    "parameters": sum(p.numel() for p in t.method.parameters())}
                   for name, t in zip(names, opened, strict=True)],
        "fractions": list(options.fractions), "seeds": options.seeds,
        "fine_tune_steps": options.fine_tune_steps if options.fine_tune else None,
        "rows": bench.rows, "curves": bench.curves(), "differences": bench.differences(),
    }  # fmt: skip


def split_settings(folder: Path, config: Mapping[str, Any], trained: Trained) -> SetConfig:
    """How the folder is split: as asked for, and else as the network's training was."""
    keys = ("conditions", "group_pattern", "exclude", "validation_fraction")
    same = Path(str(trained.data.get("folder", ""))).resolve() == folder.resolve()
    known = {key: trained.data[key] for key in keys if same and key in trained.data}
    settings = {"validation_fraction": 0.25} | known | dict(config)
    return SetConfig.model_validate({"folder": folder, **settings})


def labelled_shares(
    items: Sequence[Item], fractions: Sequence[float], seeds: int
) -> dict[tuple[int, float], NDArray[np.intp]]:
    """Which images have labels, for every seed and fraction.

    Groups are dealt, not images; of the groups with the same labels the same part, at least one.
    With one seed, a smaller fraction is part of a larger one.
    """
    content: dict[str, set[int]] = defaultdict(set)
    for item in items:
        content[item.group].add(item.condition)
    strata: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for group in sorted(content):
        strata[tuple(sorted(content[group]))].append(group)
    found = {}
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        orders = [random.permutation(groups) for _, groups in sorted(strata.items())]
        for part in fractions:
            chosen = {name for order in orders for name in order[: ceil(part * len(order))]}
            found[seed, part] = np.flatnonzero([item.group in chosen for item in items])
    return found


def _names(opened: Sequence[Trained]) -> list[str]:
    names = [trained.name for trained in opened]
    if len(set(names)) < len(names):
        raise InputError(f"two networks have the same name ({', '.join(names)})",
                         "Give folders with different names.")  # fmt: skip
    return names


def _refuse_seen(name: str, trained: Trained, test: Sequence[Item]) -> None:
    seen = sorted({item.group for item in test if trained.has_seen(item.group, item.path)})
    if seen:
        raise LeakageError(
            f"{len(seen)} group(s) held out here were trained on by {name}, such as {seen[0]!r}",
            "Hold out the same part in both (--held-out), with the same --conditions and "
            "--group-pattern.",
        )


class _Bench:
    """Fits classifiers and keeps what they say of the held-out images."""

    def __init__(self, options: Options, test: Sequence[Item], progress: Progress | None) -> None:
        self.options, self.progress = options, progress
        self.truth = np.array([item.condition for item in test])
        self.weights = resampled_groups(test)
        self.rows: list[dict[str, Any]] = []
        # Scores (N, labels) of every seed, by what was compared.
        self.scores: dict[tuple[str, str, str, float], list[Array]] = defaultdict(list)
        self.total = 0

    def compare(
        self,
        name: str,
        trained: Trained,
        pool: Labelled,
        test: Labelled,
        shares: Mapping[tuple[int, float], NDArray[np.intp]],
    ) -> None:
        """All classifiers of one network."""
        device = self.options.device
        known = _features(Representation(trained.method), pool, test, device)
        for seed in range(self.options.seeds):
            random = fresh(trained.method_name, trained.config, pool.images, seed)
            untrained = _features(random, pool, test, device)
            for part in self.options.fractions:
                chosen = shares[seed, part]
                for start, features in ((PRETRAINED, known), (RANDOM, untrained)):
                    scores = _linear(features, pool.labels, chosen)
                    self.keep(name, start, LINEAR, part, seed, pool, chosen, scores)
                if not self.options.fine_tune:
                    continue
                for start in (PRETRAINED, RANDOM):
                    network = random if start == RANDOM else Representation(trained.method)
                    scores = _tuned(network, pool, test, chosen, seed, self.options)
                    self.keep(name, start, TUNED, part, seed, pool, chosen, scores)

    def compare_pixels(
        self, pool: Labelled, test: Labelled, shares: Mapping[tuple[int, float], NDArray[np.intp]]
    ) -> None:
        """The baseline without a network."""
        features = _standardised(_pixels(pool.images), _pixels(test.images))
        for (seed, part), chosen in shares.items():
            scores = _linear(features, pool.labels, chosen)
            self.keep(PIXELS, PIXELS, LINEAR, part, seed, pool, chosen, scores)

    def keep(
        self, name: str, start: str, use: str, part: float, seed: int, pool: Labelled,
        chosen: NDArray[np.intp], scores: Array,
    ) -> None:  # fmt: skip
        """Note one classifier."""
        guess = scores.argmax(1)
        kinds = np.unique(self.truth)
        self.rows.append({
            "model": name, "start": start, "use": use, "fraction": part, "seed": seed,
            "groups": len({pool.items[int(n)].group for n in chosen}), "images": len(chosen),
            "auroc": _auroc(scores, self.truth),
            "balanced_accuracy": float(np.mean([(guess == k)[self.truth == k].mean()
                                                for k in kinds])),
        })  # fmt: skip
        self.scores[name, start, use, part].append(scores)
        if self.progress is not None:
            self.progress(len(self.rows), self.total)

    def curves(self) -> list[dict[str, Any]]:
        """Mean and range over seeds, and an interval over seeds and held-out groups."""
        found = []
        for (name, start, use, part), scores in self.scores.items():
            rows = [
                row
                for row in self.rows
                if (row["model"], row["start"], row["use"], row["fraction"])
                == (name, start, use, part)
            ]
            values = [row["auroc"] for row in rows]
            found.append({
                "model": name, "start": start, "use": use, "fraction": part,
                "images": float(np.mean([row["images"] for row in rows])),
                "groups": rows[0]["groups"],
                "auroc": float(np.mean(values)), "lowest": min(values), "highest": max(values),
                "interval": _interval(self.resampled(scores)),
                "balanced_accuracy": float(np.mean([row["balanced_accuracy"] for row in rows])),
            })  # fmt: skip
        return found

    def differences(self) -> list[dict[str, Any]]:
        """Pre-trained minus random, on the same images; ``better`` if the interval is above 0."""
        found = []
        for (name, start, use, part), ours in self.scores.items():
            if start != PRETRAINED:
                continue
            theirs = self.scores[name, RANDOM, use, part]
            means = [np.mean([_auroc(one, self.truth) for one in s]) for s in (ours, theirs)]
            low, high = _interval(self.resampled(ours) - self.resampled(theirs))
            verdict = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
            found.append({
                "model": name, "use": use, "fraction": part,
                "difference": float(means[0] - means[1]), "interval": [low, high],
                "verdict": verdict,
            })  # fmt: skip
        return found

    def resampled(self, scores: Sequence[Array]) -> Array:
        """The mean over seeds for every draw of held-out groups and of seeds ``(RESAMPLES,)``.

        Few labels make the seeds, which label other groups, differ more than the groups do.
        """
        each = np.stack([resampled_auroc(s, self.truth, self.weights) for s in scores], axis=1)
        drawn = np.random.default_rng(1).integers(len(scores), size=(RESAMPLES, len(scores)))
        found: Array = np.take_along_axis(each, drawn, axis=1).mean(1)
        return found


def resampled_groups(items: Sequence[Item]) -> Array:
    """How often each image is in each draw of groups with replacement ``(RESAMPLES, N)``.

    They are drawn among the groups with the same labels, so that no label is ever missing.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        members[item.group].append(number)
    strata: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for numbers in members.values():
        strata[tuple(sorted({items[n].condition for n in numbers}))].append(numbers)
    random, weights = np.random.default_rng(0), np.zeros((RESAMPLES, len(items)))
    for groups in strata.values():
        drawn = random.multinomial(len(groups), [1 / len(groups)] * len(groups), RESAMPLES)
        for numbers, times in zip(groups, drawn.T, strict=True):
            weights[:, numbers] = times[:, None]
    return weights


def resampled_auroc(scores: Array, truth: Array, weights: Array) -> Array:
    """What :func:`_auroc` gives if images count as often as ``weights`` ``(R, N)`` say, ``(R,)``.

    A pair of images counts as often as the product of theirs says.
    """
    found = []
    for values, positive in _one_against_rest(scores, truth):
        above, below = values[positive, None], values[None, ~positive]
        wins = (above > below) + 0.5 * (above == below)
        ours, theirs = weights[:, positive], weights[:, ~positive]
        pairs = ours.sum(1) * theirs.sum(1)
        found.append(((ours @ wins) * theirs).sum(1) / pairs)
    mean: Array = np.mean(found, axis=0)
    return mean


def _interval(values: Array) -> list[float]:
    """The middle 95 %."""
    low, high = np.quantile(values, [0.025, 0.975])
    return [float(low), float(high)]


def _one_against_rest(scores: Array, truth: Array) -> Iterator[tuple[Array, Array]]:
    """Scores of each label and where it holds; of two labels only of the second."""
    if scores.shape[1] == 2:
        yield scores[:, 1] - scores[:, 0], truth == 1
        return
    for kind in np.unique(truth):
        yield scores[:, kind], truth == kind


def _auroc(scores: Array, truth: Array) -> float:
    """Mean of each label against the rest; of two labels simply that of the second."""
    return float(np.mean([auroc(*pair) for pair in _one_against_rest(scores, truth)]))


def _features(
    network: Representation, pool: Labelled, test: Labelled, device: str
) -> tuple[Array, Array]:
    """Of both sides, standardised."""
    return _standardised(
        vectors_of(network, pool.images, device), vectors_of(network, test.images, device)
    )


def _pixels(images: Tensor) -> Tensor:
    grid = (PIXEL_GRID[images.ndim - 2],) * (images.ndim - 2)
    return F.interpolate(images, grid, mode="area").flatten(1).double()


def _standardised(train: Tensor, test: Tensor) -> tuple[Array, Array]:
    """Mean 0 and deviation 1 over all training images, with labels or without."""
    mean, deviation = train.mean(0), train.std(0)
    # A feature that never changes says nothing, and must not be blown up.
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)
    return ((train - mean) / scale).numpy(), ((test - mean) / scale).numpy()


def _linear(features: tuple[Array, Array], labels: Array, chosen: NDArray[np.intp]) -> Array:
    """Scores ``(N, labels)`` of a logistic regression on the labelled images."""
    fitted = logistic_regression(features[0][chosen], labels[chosen], standardise=False)
    return fitted.scores(features[1])


def _cuda(device: str) -> list[torch.device]:
    """The devices whose random numbers have to be put back."""
    return [torch.device(device)] if "cuda" in device else []


def _tuned(
    network: Representation, pool: Labelled, test: Labelled, chosen: NDArray[np.intp], seed: int,
    options: Options,
) -> Array:  # fmt: skip
    """Scores of a copy of the network that was trained as a whole."""
    index = torch.from_numpy(chosen)
    count = int(pool.labels.max()) + 1
    width = vectors_of(network, pool.images[:1], options.device).shape[1]
    with torch.random.fork_rng(devices=_cuda(options.device)):
        torch.manual_seed(seed)
        body = deepcopy(network).requires_grad_(True)
        whole = nn.Sequential(body, nn.LayerNorm(width), nn.Linear(width, count))
        classifier = train_classifier(
            whole, pool.images[index], torch.from_numpy(pool.labels[chosen]), count,
            steps=options.fine_tune_steps, device=options.device, rate=FINE_TUNE_RATE, axes=(2,),
        )  # fmt: skip
    return classifier.scores(test.images.numpy())
