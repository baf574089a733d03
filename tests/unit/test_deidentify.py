"""De-identification: nothing that names somebody is left, what an option keeps is, pixels are."""

from __future__ import annotations

import io
import re
import stat
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from deidentify_cases import SYNTAXES, Planted, decoded, encoded, image, planted, searchable
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from medgen.errors import InputError
from medgen.io.deidentify import KeyedMap, Profile, new_key, random_key, read_key
from medgen.io.deidentify.attributes import Attributes
from medgen.io.deidentify.objects import Refused, Treated, treat
from medgen.io.deidentify.profile import BASIC, CODES, PIXEL_CODES
from medgen.io.deidentify.table import Row, row_of, rows, safe_private
from medgen.io.deidentify.words import is_safe

KEY = bytes(range(32))
FLAGS = [
    "keep_uids", "keep_device", "keep_institution", "keep_patient_characteristics",
    "clean_descriptors", "keep_safe_private",
]  # fmt: skip
PROFILES = st.builds(
    Profile,
    dates=st.sampled_from(["remove", "shift", "keep"]),
    **{name: st.booleans() for name in FLAGS},
)
PLANTED = {name: planted(syntax) for name, syntax in SYNTAXES.items()}


def done(data: bytes, profile: Profile | None = None, key: bytes = KEY) -> Treated:
    return treat(io.BytesIO(data), profile or Profile(), KeyedMap(key))


def result(dataset: Any, profile: Profile | None = None, key: bytes = KEY) -> Any:
    return decoded(done(encoded(dataset), profile, key).data)


# --- the table -------------------------------------------------------------------------------


def test_the_table_is_complete() -> None:
    table = rows()
    assert len(table) == 655  # of edition 2026c, repeating groups included
    assert {row.basic for row in table.values()} == {
        "X", "Z", "D", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*",
    }  # fmt: skip
    kept = {column for row in table.values() for column in row.options}
    assert {"uids", "device", "institution", "patient", "full_dates", "descriptors"} <= kept


@pytest.mark.parametrize(
    ("tag", "basic", "options"),
    [
        ("00100010", "Z", {}),
        ("00100020", "Z/D", {}),
        ("00100030", "Z", {}),
        ("00101010", "X", {"patient": "K"}),
        ("00080050", "Z", {}),
        ("00080018", "U", {"uids": "K"}),
        ("00080020", "Z", {"full_dates": "K", "modified_dates": "C"}),
        ("00080080", "X/Z/D", {"institution": "K"}),
        ("00181000", "X/Z/D", {"device": "K"}),
        ("0008103e", "X", {"descriptors": "C"}),
        ("00082112", "X/Z/U*", {"uids": "K"}),
        ("00181072", "X", {"full_dates": "K", "modified_dates": "C"}),
        ("60xx3000", "X", {"graphics": "C"}),
    ],
)
def test_rows_of_the_standard(tag: str, basic: str, options: dict[str, str]) -> None:
    assert rows()[tag].basic == basic
    assert rows()[tag].options == options


def test_kin_of_the_table_is_treated_and_geometry_is_not() -> None:
    assert row_of(0x00142006) is not None  # a person's name that the table forgets
    assert row_of(0x60020022) is not None
    assert row_of(0x0018FFF0) is not None  # unknown
    for keyword in ("ImagePositionPatient", "PixelSpacing", "Rows", "PixelData", "Modality",
                    "SOPClassUID", "RescaleSlope", "CodeValue"):  # fmt: skip
        assert row_of(pydicom.datadict.tag_for_keyword(keyword)) is None, keyword


def test_codes_are_those_of_the_standard() -> None:
    named = {c.value: c.meaning for c in (getattr(codes.DCM, k) for k in codes.DCM.dir())}
    for value, meaning in [BASIC, *CODES.values(), *PIXEL_CODES.values()]:
        if value in named:
            assert named[value] == meaning
    assert BASIC[0] in named


# --- nothing is left -------------------------------------------------------------------------


def left(case: Planted, data: bytes, profile: Profile) -> list[tuple[str, int]]:
    """Where a secret is still to be found that no option keeps."""
    return [(f"{t:08x}", level) for t, level in case.left(data) if not may_stay(t, profile)]


def may_stay(tag: int, profile: Profile) -> bool:
    row = row_of(tag)
    action = row.action(profile.columns) if row else "X"
    dated = row is not None and "modified_dates" in row.options and profile.dates == "shift"
    # Shifting keeps times, and of a date and time the time.
    return action == "K" or (dated and action == "C" and _vr(tag) in ("TM", "DT", "SH"))


def _vr(tag: int) -> str:
    return pydicom.datadict.dictionary_VR(tag) if pydicom.datadict.dictionary_has_tag(tag) else ""


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_no_secret_survives_the_basic_profile(syntax: str) -> None:
    case = PLANTED[syntax]
    assert len(case.secrets) > 1400
    assert len(case.left(case.data)) == len(case.secrets)
    treated = done(case.data)
    assert left(case, treated.data, Profile()) == []
    for secret in (b"Doe", b"Jane", b"P1", b"SECRET"):
        assert secret not in searchable(treated.data)
    assert decoded(treated.data).file_meta.TransferSyntaxUID == SYNTAXES[syntax]
    assert treated.data[:128] == b"\0" * 128


@settings(max_examples=25, deadline=None)
@given(profile=PROFILES, syntax=st.sampled_from(list(SYNTAXES)))
def test_options_keep_what_they_say_and_nothing_else(profile: Profile, syntax: str) -> None:
    case = PLANTED[syntax]
    treated = done(case.data, profile)
    assert left(case, treated.data, profile) == []
    before, after = decoded(case.data), decoded(treated.data)
    for tag in (tag for tag, level in case.secrets if level == 0 and tag in before):
        row = row_of(tag) or Row("", "X", {})
        # What no dictionary knows and the file does not say (UN) goes even so.
        if row.action(profile.columns) == "K" and before[tag].VR not in ("SQ", "UN"):
            assert after[tag].value == before[tag].value
    assert after.PixelData == before.PixelData


def test_what_was_done_is_counted_without_values() -> None:
    counts = done(PLANTED["explicit"].data).done
    assert counts["PatientName", "replaced"] == 2  # at both levels
    assert counts["AccessionNumber", "emptied"] == 2
    assert counts["private attribute", "removed"] == 3
    assert not any(re.search("SEC|Doe|PRIVATE", name) for name, _ in counts)


# --- what stays ------------------------------------------------------------------------------


def test_the_object_says_what_was_done() -> None:
    profile = Profile(dates="shift", keep_device=True)
    after = result(image(), profile)
    assert after.PatientIdentityRemoved == "YES"
    assert after.LongitudinalTemporalInformationModified == "MODIFIED"
    stated = [item.CodeValue for item in after.DeidentificationMethodCodeSequence]
    assert stated == ["113100", "113107", "113109"]
    assert after.PatientName == after.PatientID
    assert re.fullmatch(r"ANON-[0-9A-F]{12}", after.PatientID)
    meta = after.file_meta
    assert meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert "SourceApplicationEntityTitle" not in meta


def test_an_earlier_treatment_of_the_pixels_stays_stated() -> None:
    dataset = image()
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "113101", "DCM", "Doe"
    dataset.DeidentificationMethodCodeSequence = Sequence([item])
    stated = result(dataset).DeidentificationMethodCodeSequence
    assert [code.CodeMeaning for code in stated] == [BASIC[1], PIXEL_CODES["113101"][1]]


def test_values_that_must_not_be_empty_get_dummies_of_their_kind() -> None:
    dataset = image(ContentDate="20200405", ContentTime="101112", AcquisitionDateTime="20200405",
                    ProtocolName="Doe brain", DeviceSerialNumber="4711")  # fmt: skip
    after = result(dataset)
    for keyword in ("ContentDate", "ContentTime", "AcquisitionDateTime", "ProtocolName"):
        assert after[keyword].value
    assert (after.ContentDate, after.ContentTime) == ("19000101", "000000")


def test_an_item_that_must_not_be_empty_keeps_its_form_only() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "4711", "L", "Dr Doe"
    code.ContextUID, code.Rows = "1.2.840.10008.6.1.1", 7
    dataset = image(PersonIdentificationCodeSequence=Sequence([code]))
    (item,) = result(dataset).PersonIdentificationCodeSequence
    assert (item.CodeValue, item.CodingSchemeDesignator) == ("ANONYMIZED", "99ANON")
    assert item.CodeMeaning == "ANONYMIZED"
    assert item.Rows == 0


def test_empty_values_stay_empty() -> None:
    after = result(image(AccessionNumber="", ContrastBolusAgent=None, StudyDate=""))
    assert after.AccessionNumber == ""
    assert after.ContrastBolusAgent in ("", None)
    assert after.StudyDate == ""


def test_references_and_well_known_uids() -> None:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image().SOPClassUID
    reference.ReferencedSOPInstanceUID = "1.2.3.2"
    dataset = image(
        SourceImageSequence=Sequence([reference]), FrameOfReferenceUID="1.2.840.10008.1.4.1.1"
    )
    after = result(dataset)
    other = result(image(instance=2))
    (kept,) = after.SourceImageSequence
    assert kept.ReferencedSOPInstanceUID == other.SOPInstanceUID != "1.2.3.2"
    assert kept.ReferencedSOPClassUID == image().SOPClassUID
    assert after.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"  # the Talairach atlas
    assert after.StudyInstanceUID == other.StudyInstanceUID


@given(st.dates(min_value=date(1850, 1, 1)), st.dates(min_value=date(1850, 1, 1)))
@settings(max_examples=30, deadline=None)
def test_shifted_dates_keep_their_distances_and_times(first: date, second: date) -> None:
    dataset = image(
        StudyDate=f"{first:%Y%m%d}".zfill(8), StudyTime="112233",
        AcquisitionDateTime=f"{second:%Y%m%d}".zfill(8) + "010203.5+0100",
        PatientBirthDate="19610412",
    )  # fmt: skip
    after = result(dataset, Profile(dates="shift"))
    moved = [_date(after.StudyDate), _date(after.AcquisitionDateTime[:8])]
    assert moved[1] - moved[0] == second - first
    assert 366 <= (first - moved[0]).days < 4018
    assert after.AcquisitionDateTime[8:] == "010203.5+0100"
    assert after.StudyTime == "112233"
    assert after.PatientBirthDate == ""


def _date(text: str) -> date:
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))


@pytest.mark.parametrize("bad", ["Doe", "2020", "20201399", "00010101", "20200101Doe", "999"])
def test_dates_that_cannot_be_shifted_are_removed(bad: str) -> None:
    after = done(encoded(image(AcquisitionDateTime=bad, StudyDate=bad)), Profile(dates="shift"))
    assert bad.encode() not in after.data.replace(b"19000101000000", b"")


def test_descriptions_of_imaging_words_only() -> None:
    for text in ("AX T2 FLAIR FS", "t1 mprage sag iso 1.0mm", "CT Chest w/o contrast 5.0 B30f",
                 "ep2d_dwi_b1000_ADC", "Abdomen 3.0"):  # fmt: skip
        assert is_safe(text), text
    for text in ("Brain Mrs Doe", "T1 12/04/1961", "MR 4711081", "Kopf für Müller", "john t1",
                 "AX T2 1 2 3", "T1" * 100):  # fmt: skip
        assert not is_safe(text), text
    profile = Profile(clean_descriptors=True)
    after = result(image(SeriesDescription="AX T2", StudyDescription="Brain of J. Doe"), profile)
    assert after.SeriesDescription == "AX T2"
    assert "StudyDescription" not in after


def test_safe_private_numbers() -> None:
    dataset = image()
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0E, "FD", [1.0, 0.0, 0.0])
    block.add_new(0x0A, "US", 24)  # slices of a mosaic
    block.add_new(0x0D, "CS", "DOE")  # text is never kept
    assert not [tag for tag in result(dataset).keys() if tag.is_private]  # noqa: SIM118
    after = result(dataset, Profile(keep_safe_private=True))
    kept = after.private_block(0x0019, "SIEMENS MR HEADER")
    assert (kept[0x0C].value, kept[0x0A].value) == (1000, 24)
    assert list(kept[0x0E].value) == [1.0, 0.0, 0.0]
    assert 0x0D not in kept
    assert set(safe_private().values()) <= {"DS", "IS", "FL", "FD", "SS", "US"}


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless"])
def test_compressed_pixels_are_copied(syntax: str) -> None:
    dataset = image()
    dataset.SOPInstanceUID = "1.2.3.1"
    dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    after = decoded(done(buffer.getvalue()).data)
    assert after.PixelData == dataset.PixelData
    assert np.array_equal(after.pixel_array, image().pixel_array)


# --- keys ------------------------------------------------------------------------------------


@given(st.text(max_size=80))
def test_uids_are_valid_and_depend_on_the_key(old: str) -> None:
    one, again, other = (KeyedMap(k) for k in (KEY, KEY, bytes(32)))
    assert one.uid(old) == again.uid(old) != other.uid(old)
    assert UID(one.uid(old)).is_valid
    assert len(one.uid(old)) <= 44
    assert one.pseudonym(old) == again.pseudonym(old) != other.pseudonym(old)
    assert -4018 < one.shift_days(old) <= -366


def test_one_patient_has_one_pseudonym() -> None:
    names = [
        done(encoded(image(patient=p, PatientName=n))).pseudonym
        for p, n in (("7", "Doe^J"), ("7 ", "Doe"), ("8", "Doe"), ("", "Doe"), ("", "Roe"))
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 4
    issued = done(encoded(image(patient="7", IssuerOfPatientID="A"))).pseudonym
    assert issued != names[0]


def test_a_random_key_links_nothing() -> None:
    data = encoded(image())
    assert done(data, key=random_key()).uid != done(data, key=random_key()).uid


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "k"
    key = new_key(path)
    assert read_key(path) == key
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="exists already"):
        new_key(path)
    path.chmod(0o644)
    with pytest.raises(InputError, match="read by others"):
        read_key(path)
    path.chmod(0o600)
    path.write_text("zz")
    with pytest.raises(InputError, match="does not hold a key"):
        read_key(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_key(tmp_path / "none")
    with pytest.raises(InputError, match="at least 16"):
        KeyedMap(b"short")
    assert key.hex() not in repr(KeyedMap(key))


# --- what is set aside -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason", "damaged"),
    [
        ({"BurnedInAnnotation": "YES"}, "says so", False),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "BurnedInAnnotation": "YES"},
            "says so",
            False,
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture", False),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "picture of a screen", False),
        ({"Modality": "US"}, "usual for US", False),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.22"}, "structured report", False),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated document", False),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "presentation state", False),
        ({"StudyInstanceUID": ""}, "StudyInstanceUID is missing", True),
        ({"SOPInstanceUID": ["1.2.3", "1.2.4"]}, "several", True),
        ({"PixelData": b"12"}, "missing at the end", True),
        ({"Rows": None}, "damaged", True),
    ],
)
def test_objects_that_are_set_aside(changes: Any, reason: str, damaged: bool) -> None:
    with pytest.raises(Refused, match=reason) as raised:
        done(encoded(image(**changes)))
    assert raised.value.damaged is damaged


def test_overlays_in_the_pixels_are_set_aside_and_others_removed() -> None:
    dataset = image()
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 12)
    with pytest.raises(Refused, match="overlay"):
        done(encoded(dataset))
    dataset.add_new(0x60003000, "OW", b"\0" * 128)
    assert not [tag for tag in result(dataset).keys() if tag.group == 0x6000]  # noqa: SIM118


def test_stated_no_lifts_what_is_only_usual() -> None:
    done(encoded(image(Modality="US", BurnedInAnnotation="NO")))
    treated = done(encoded(image(Modality="US")), Profile(allow_burned_in=True))
    assert treated.warning


@pytest.mark.parametrize(
    "hostile", ["../../etc/passwd", "Doe^Jane", "1.2." + "9" * 90, "1..2", "a/b\0c"]
)
def test_hostile_uids_and_numbers(hostile: str) -> None:
    dataset = image(PatientID=hostile)
    with pydicom.config.disable_value_validation():
        dataset.SOPInstanceUID = dataset.SeriesInstanceUID = dataset.StudyInstanceUID = hostile
        data = encoded(dataset)
    for profile in (Profile(), Profile(keep_uids=True)):
        treated = done(data, profile)
        after = decoded(treated.data)
        assert UID(after.SOPInstanceUID).is_valid  # even if UIDs are kept
        assert UID(after.StudyInstanceUID).is_valid
        parts = (treated.pseudonym, treated.study, treated.series, treated.name)
        assert all(re.fullmatch(r"[A-Za-z0-9-]+(\.dcm)?", part) for part in parts)


def test_sequences_that_never_end_are_refused() -> None:
    outer = Dataset()
    for _ in range(80):
        item = outer
        outer = Dataset()
        outer.DerivationCodeSequence = Sequence([item])
    attributes = Attributes(Profile(), KeyedMap(KEY), "ANON-0", -400)
    with pytest.raises(ValueError, match="nested too deeply"):
        attributes.treat(outer)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_raise_nothing_but_refusals(draw: Any) -> None:
    data = bytearray(PLANTED["explicit"].data[:6000])
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(132, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with pytest.raises(Refused) as raised:
        done(bytes(data))
    assert not re.search(r"SEC\d|Doe|PRIVATE", raised.value.reason)
