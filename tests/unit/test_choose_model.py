"""The detector that takes an image is chosen by its header, or the choice is refused."""

from __future__ import annotations

from typing import Any

import pytest

from medgen.errors import InputError
from medgen.tasks.choose_model import DETECTORS, choose_detector
from medgen.tasks.detect import DEFAULT_MODEL


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "shape": (128, 128),
        "channels": 1,
        "modality": None,
        "spacing_mm": None,
        "body_part": None,
    } | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shape": (64, 80, 30), "spacing_mm": (1.0, 1.0, 4.0)}, "brain-mr"),
        ({"shape": (64, 80, 30), "modality": "MR", "body_part": "HEAD"}, "brain-mr"),
        ({"shape": (64, 80, 30), "modality": "MR", "body_part": "brain"}, "brain-mr"),
        ({"spacing_mm": (1.0, 1.0)}, "brain-mr"),
        ({"spacing_mm": (0.2, 0.2), "modality": "DX"}, "chest-xray-anomaly"),
        ({"modality": "CR", "body_part": "CHEST"}, "chest-xray-anomaly"),
        ({"channels": 3}, "histology-anomaly"),
    ],
)
def test_what_the_header_says_decides(changes: dict[str, Any], expected: str) -> None:
    choice = choose_detector(facts(**changes))
    assert choice.model == expected
    assert expected in choice.why


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["could be of several kinds"]),
        ({"shape": (64, 80, 30), "modality": "CT"}, ["none of medgen's own", "CT"]),
        ({"modality": "DX", "body_part": "HAND"}, ["DX of HAND", "made for CHEST"]),
        ({"channels": 7}, ["7-channel 2-D image"]),
        ({"shape": (64, 80, 30), "modality": "MR", "body_part": "KNEE"}, ["made for BRAIN"]),
        ({"shape": (64, 80, 30), "channels": 3}, ["colour 3-D image"]),
    ],
)
def test_what_fits_none_or_several_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        choose_detector(facts(**changes))
    for word in words:
        assert word in caught.value.message
    assert "--model" in str(caught.value.hint)


def test_the_default_of_python_is_one_of_them() -> None:
    assert DEFAULT_MODEL in DETECTORS
