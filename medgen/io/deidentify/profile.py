"""Which profile and options of PS3.15 Annex E are applied, and how an object says so."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medgen.config import Config

EDITION = "2026c"  # of the table in medgen/data/ps3_15_table_e1_1.tsv

# PS3.16 CID 7050, coding scheme DCM.
BASIC = ("113100", "Basic Application Confidentiality Profile")
PIXEL_CODES = {  # done by others before; a run that copies the pixels leaves them true
    "113101": ("113101", "Clean Pixel Data Option"),
    "113102": ("113102", "Clean Recognizable Visual Features Option"),
}
CODES = {
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "keep_dates": (
        "113106",
        "Retain Longitudinal Temporal Information Full Dates Option",
    ),
    "shift_dates": (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    "keep_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "keep_device": ("113109", "Retain Device Identity Option"),
    "keep_uids": ("113110", "Retain UIDs Option"),
    "keep_safe_private": ("113111", "Retain Safe Private Option"),
    "keep_institution": ("113112", "Retain Institution Identity Option"),
}
# Column of the table by setting.
_COLUMNS = {
    "keep_uids": "uids",
    "keep_device": "device",
    "keep_institution": "institution",
    "keep_patient_characteristics": "patient",
    "keep_dates": "full_dates",
    "shift_dates": "modified_dates",
    "clean_descriptors": "descriptors",
}


class Profile(Config):
    """The Basic Profile and its options; the defaults are the Basic Profile alone."""

    dates: Literal["remove", "shift", "keep"] = Field(
        "remove",
        description="Remove dates and times; shift dates by days that are secret and the same for "
        "all of one patient, times kept; or keep both.",
    )
    keep_uids: bool = Field(False, description="Keep UIDs instead of making new ones.")
    keep_device: bool = Field(False, description="Keep what identifies the device.")
    keep_institution: bool = Field(False, description="Keep what identifies the institution.")
    keep_patient_characteristics: bool = Field(
        False, description="Keep age, sex, size and weight (a PET SUV needs the weight)."
    )
    clean_descriptors: bool = Field(
        False, description="Keep descriptions that consist of known words of imaging only."
    )
    keep_safe_private: bool = Field(
        False, description="Keep private attributes known to be numbers of the acquisition."
    )
    allow_burned_in: bool = Field(
        False, description="Write pictures too in which text may be burned in."
    )

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options chosen, keys of :data:`CODES`."""
        chosen = {
            "keep_dates": self.dates == "keep",
            "shift_dates": self.dates == "shift",
            **{name: getattr(self, name) for name in CODES if not name.endswith("_dates")},
        }
        return tuple(name for name in CODES if chosen[name])

    @property
    def columns(self) -> tuple[str, ...]:
        """Option columns of the table that apply."""
        return tuple(_COLUMNS[name] for name in self.options if name in _COLUMNS)

    @property
    def codes(self) -> list[tuple[str, str]]:
        """Code value and meaning (CID 7050) of the profile and of each option."""
        return [BASIC, *(CODES[name] for name in self.options)]

    @property
    def temporal_information(self) -> str:
        """Longitudinal Temporal Information Modified (0028,0303)."""
        return {"remove": "REMOVED", "shift": "MODIFIED", "keep": "UNMODIFIED"}[self.dates]
