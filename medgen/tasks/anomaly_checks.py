"""What can be said of a comparison before any of its models is trained or run.

A network that cannot be built, a method that finds no anomalies and a training set that shares
people with the test set are refused here, and not after hours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medgen.anatomy_settings import PhantomConfig
from medgen.errors import InputError
from medgen.run_record import hash_name
from medgen.tasks.anomaly_cases import Case, phantom_name, refuse_known
from medgen.tasks.anomaly_models import known_to_package, known_to_run
from medgen.tasks.anomaly_protocols import protocol
from medgen.tasks.anomaly_study import Study, Unit, training_of
from medgen.training.config import DRAWN, TrainingConfig


def check_models(
    study: Study,
    units: Iterable[Unit],
    cases: Mapping[str, Sequence[Case]],
    *,
    steps: int | None = None,
    minutes: float | None = None,
) -> None:
    """Refuse models that cannot be evaluated on these cases.

    Args:
        study: The comparison.
        units: All that is evaluated.
        cases: Of each set.
        steps: Length of each training, instead of what the study says.
        minutes: Or its length in minutes.

    Raises:
        InputError: A run is unfinished, or a method or its data cannot be built.
        LeakageError: A model knows one of the cases, or would be trained on it.
    """
    units = list(units)
    if all(protocol(one).shipped for one in study.protocols) and not any(
        unit.kind == "package" for unit in units
    ):
        raise InputError(
            "protocol as_shipped judges packages, and the study names none",
            "Give `models`, or a protocol for runs and methods.",
        )
    trained: dict[str, frozenset[str]] = {}  # by the settings of the data
    for unit in units:
        known: frozenset[str] = frozenset()
        if unit.kind == "package":
            known = known_to_package(unit.source)
        elif unit.kind == "run":
            known = known_to_run(unit.source)
        elif unit.kind == "method":
            if unit.seed != study.seed:
                continue  # the seeds of a method share all that is looked at
            training = training_of(study, unit, steps=steps, minutes=minutes)
            known = _would_know(unit.name, training, trained)
        for name, members in cases.items():
            refuse_known(unit.name, known, members, name)


def _would_know(
    name: str, training: TrainingConfig, trained: dict[str, frozenset[str]]
) -> frozenset[str]:
    """Hashes of the subjects and files that a method would be trained on."""
    from medgen.tasks.anomaly_models import hashes_in
    from medgen.training.batches import build_source, can_sample
    from medgen.training.build import build_method

    try:
        method: Any = build_method(training)
        if not hasattr(method, "predict") or can_sample(method) or hasattr(method, "out_channels"):
            raise InputError(
                "it gives no map of anomalies",
                "Name methods that find anomalies, such as vae, dae, fpi and padim.",
            )
        kind = training.data.get("kind")
        key = json.dumps(training.data, sort_keys=True, default=str)
        if kind == "phantoms":
            heads = training.data.get("heads", PhantomConfig.model_fields["heads"].default)
            return frozenset(hash_name(phantom_name(seed)) for seed in range(heads + 1))
        if kind in DRAWN:
            return frozenset()
        if key not in trained:
            source = build_source(training, method)
            trained[key] = frozenset(hashes_in(getattr(source, "facts", {})))
    except InputError as error:
        raise type(error)(f"method {name}: {error.message}", error.hint) from error
    return trained[key]
