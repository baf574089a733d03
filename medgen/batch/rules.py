"""Rules on header fields: which images a pipeline takes, which it prefers, and why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medgen.config import Config

# What a rule may ask for. Facts that an image does not state are unknown, never guessed.
FIELDS = {
    "format": "dicom or nifti",
    "modality": "DICOM modality code; MR for the anatomical suffixes of BIDS",
    "body_part": "DICOM body part examined",
    "text": "description, protocol and, for NIfTI, the file's name; for looking up words",
    "description": "DICOM series description",
    "protocol": "DICOM protocol name",
    "suffix": "last part of a BIDS name, such as T1w or FLAIR",
    "image_type": "list of DICOM image types",
    "scanning_sequence": "DICOM scanning sequence, such as SE, GR, IR",
    "contrast_agent": "DICOM contrast agent",
    "manufacturer": "maker of the scanner",
    "echo_time_ms": "DICOM echo time",
    "repetition_time_ms": "DICOM repetition time",
    "inversion_time_ms": "DICOM inversion time",
    "b_value": "diffusion weighting in s/mm2",
    "dims": "2 for a picture, 3 for a volume",
    "frames": "number of volumes; 1 unless the image is 4-D",
    "channels": "1 grey, 3 colour",
    "slices": "length of the shortest axis in voxels",
    "finest_mm": "smallest side of a voxel",
    "coarsest_mm": "largest side of a voxel",
    "missing_slices": "slices that should be there and are not",
}
# Longest text a pattern is matched against: header fields can be of any length.
_LONGEST_TEXT = 512


class Rule(Config):
    """One condition on one field. Exactly one of the conditions is given."""

    field: str = Field(description="Which fact of the image; see the documentation for the list.")
    any_of: tuple[str | int | float, ...] | None = Field(
        None, description="The value is one of these; case does not matter."
    )
    none_of: tuple[str | int | float, ...] | None = Field(
        None, description="The value is none of these; case does not matter."
    )
    matches: str | None = Field(None, description="A regular expression is found in the value.")
    not_matches: str | None = Field(None, description="A regular expression is not found in it.")
    at_least: float | None = Field(None, description="The number is this or more.")
    at_most: float | None = Field(None, description="The number is this or less.")
    unknown: Literal["accept", "reject"] = Field(
        "accept", description="What to do when the image does not state the field."
    )
    reason: str = Field(min_length=1, description="Why; shown for every choice and rejection.")

    @field_validator("field")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            question = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(FIELDS)}"
            msg = f"unknown field {name!r}{question}"
            raise ValueError(msg)
        return name

    @field_validator("matches", "not_matches")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            msg = f"not a regular expression: {error}"
            raise ValueError(msg) from error
        return pattern

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        names = ("any_of", "none_of", "matches", "not_matches", "at_least", "at_most")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            msg = f"a rule needs exactly one of {', '.join(names)}; got {given or 'none'}"
            raise ValueError(msg)
        return self

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """Whether an image with these facts meets the condition."""
        value = facts.get(self.field)
        if value is None or value == "" or value == []:
            return self.unknown == "accept"
        values = list(value) if isinstance(value, list | tuple) else [value]
        if self.any_of is not None:
            return any(_same(v, wanted) for v in values for wanted in self.any_of)
        if self.none_of is not None:
            return not any(_same(v, refused) for v in values for refused in self.none_of)
        if self.matches is not None:
            return _found(self.matches, values)
        if self.not_matches is not None:
            return not _found(self.not_matches, values)
        try:
            numbers = [float(v) for v in values]
        except (TypeError, ValueError):
            return self.unknown == "accept"
        if self.at_least is not None:
            return min(numbers) >= self.at_least
        assert self.at_most is not None
        return max(numbers) <= self.at_most


def first_broken(rules: Iterable[Rule], facts: Mapping[str, Any]) -> Rule | None:
    """The first rule that an image does not meet, or None."""
    return next((rule for rule in rules if not rule.holds(facts)), None)


def preference(rules: Sequence[Rule], facts: Mapping[str, Any]) -> tuple[int, ...]:
    """Sorts images: those that meet the first rule come first, then the second, and so on."""
    return tuple(0 if _certainly(rule, facts) else 1 for rule in rules)


def reasons_for(rules: Sequence[Rule], facts: Mapping[str, Any]) -> list[str]:
    """Why an image is preferred: the reasons of the rules it certainly meets."""
    return [rule.reason for rule in rules if _certainly(rule, facts)]


def _certainly(rule: Rule, facts: Mapping[str, Any]) -> bool:
    return facts.get(rule.field) not in (None, "", []) and rule.holds(facts)


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) or isinstance(value, str):
        return str(value).casefold() == str(wanted).casefold()
    return bool(value == wanted)


def _found(pattern: str, values: Sequence[Any]) -> bool:
    return any(re.search(pattern, str(v)[:_LONGEST_TEXT], re.IGNORECASE) for v in values)
