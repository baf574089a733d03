"""Pipeline files: what ships is valid, mistakes are named, nothing unknown is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from medgen.batch.pipeline import Pipeline, json_schema, load_pipeline
from medgen.errors import InputError

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_pipelines_are_valid_and_say_what_they_do(path: Path) -> None:
    pipeline = load_pipeline(path)
    assert pipeline.name == path.stem
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# ") and f"pipelines/{path.name}" in path.read_text()
    assert pipeline.description


def test_all_that_are_asked_for_ship() -> None:
    assert {path.stem for path in SHIPPED} == {
        "brain_screening", "chest_xray_triage", "deidentify_archive", "dicom_to_bids",
        "pseudo_healthy", "thick_slices",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "not valid YAML"),
        ("- a", "expected keys"),
        ("name: p\ntask: {name: detect-anomalies}\nmodle: x", "modle: unknown key"),
        ("name: p\ntask: {name: detect-anomalies, modle: x}", r"\.modle: unknown key"),
        ("name: p\ntask: {name: segment}", "segment"),
        ("name: P P\ntask: {name: detect-anomalies}", "name"),
        ("name: p\ntask: {name: detect-anomalies}\ntimeout_minutes: -1", "timeout_minutes"),
        ("name: p\ntask: {name: detect-anomalies, dicom: [seg, seg]}", "counts once"),
        ("name: p\ntask: {name: inpaint}", "remove_anomalies: true or remove_metal"),
        ("name: p\ntask: {name: super-resolve}", "one of scale, spacing_mm"),
        ("name: p\ntask: {name: super-resolve, scale: 2, isotropic: true}", "one of scale"),
        ("name: p\ntask: {name: denoise, strength: 2}", "strength"),
        ("name: p\ntask: {name: chain, steps: [{name: denoise}]}", "steps"),
        ("name: p\ntask: {name: chain, steps: [{name: denoise}, {name: rotate}]}", "rotate"),
        (
            "name: p\ntask: {name: chain, steps: [{name: denoise}, {name: denoise, report: no}]}",
            "report: unknown key",
        ),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_pipeline(path)
    assert str(path) in caught.value.message


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_pipeline(tmp_path / "missing.yaml")
    (tmp_path / "huge.yaml").write_text("#" * 2_000_000)
    with pytest.raises(InputError, match="too large"):
        load_pipeline(tmp_path / "huge.yaml")


def test_the_schema_describes_every_key_and_its_examples_pass() -> None:
    schema = json_schema()
    json.dumps(schema)
    for name, part in {"Pipeline": schema, **schema["$defs"]}.items():
        for key, value in part.get("properties", {}).items():
            described = "description" in value or value.get("const") or "$ref" in value
            assert described, f"{name}.{key}"


def test_identity_follows_what_is_done_and_not_how_it_is_described() -> None:
    values = {"name": "p", "task": {"name": "detect-anomalies"}}
    first = Pipeline.model_validate(values)
    assert first.sha256 == Pipeline.model_validate({**values, "description": "x"}).sha256
    assert first.sha256 == Pipeline.model_validate({**values, "timeout_minutes": 5}).sha256
    assert first.sha256 != Pipeline.model_validate({**values, "case": "study"}).sha256
    with pytest.raises(ValidationError):
        first.name = "q"  # type: ignore[misc]
