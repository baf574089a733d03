"""Two models on one scan, side by side: one HTML file that opens from disk, with linked slices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgen.report import words
from medgen.report.html import finding_rows, viewer_data
from medgen.report.pages import render, script_json
from medgen.report.scene import DetectionLike, build_scene

Agreement = Mapping[str, Any]


def write_pair(
    detections: tuple[DetectionLike, DetectionLike],
    names: tuple[str, str],
    agreement: Agreement,
    path: str | Path,
) -> Path:
    """Write the report.

    Args:
        detections: What each of the models found in the same scan.
        names: Of the models, as they are to be told apart.
        agreement: As :func:`medgen.tasks.detect_compare.agreement` gives it.
        path: Where to write; an existing file is replaced.

    Returns:
        The path written.
    """
    first, second = detections
    scenes = (build_scene(first, beside=second), build_scene(second, beside=first))
    data = [viewer_data(one, scene) for one, scene in zip(detections, scenes, strict=True)]
    del data[1]["layers"]["scan"]  # it is the same
    text = render(
        "pair.html",
        name=words.scan_name(first),
        disclaimer=words.DISCLAIMER,
        convention=words.convention(scenes[0]),
        anatomical=scenes[0].anatomical,
        planes=scenes[0].planes,
        restored=any(scene.restored is not None for scene in scenes),
        models=[
            {
                "name": name,
                "rows": _rows(one),
                "findings": finding_rows(one, scene),
                "first": number * len(first.findings),
            }
            for number, (name, one, scene) in enumerate(zip(names, detections, scenes, strict=True))
        ],
        agreement=sentences(names, agreement),
        viewer_data=script_json(data),
    )
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def sentences(names: tuple[str, str], agreement: Agreement) -> list[str]:
    """How far two models agree, in words."""
    first, second = names
    correlation = agreement["rank_correlation"]
    found = [
        "Their maps cannot be compared: one of them is constant."
        if correlation is None
        else f"Rank correlation of their maps inside the brain: {correlation:.2f} (1 if they order "
        "all voxels alike, 0 if they have nothing to do with each other)."
    ]
    if agreement["dice"] is None:
        return [*found, "Neither has a finding."]
    touching, back = agreement["first_in_second"], agreement["second_in_first"]
    return [
        *found,
        f"Overlap of their findings (Dice): {agreement['dice']:.2f}.",
        f"{touching} of {agreement['first_findings']} findings of {first} touch one of {second}; "
        f"{back} of {agreement['second_findings']} the other way round.",
    ]


def _rows(detection: DetectionLike) -> dict[str, str]:
    """What is said of a model in the table."""
    model, p_value = detection.model, detection.p_value
    return {
        "model": f"{model.name} {model.version} ({model.method})",
        "the map is": detection.evidence or "not said",
        "scan score": words.score(detection.score),
        "among healthy scans": f"{words.verdict(p_value)}. {words.score_meaning(p_value)}",
        "findings": words.findings_sentence(len(detection.findings)),
        "threshold": words.threshold(detection),
    }
