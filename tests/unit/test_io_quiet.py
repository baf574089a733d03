"""Warnings of pydicom quote values of tags: nothing of them is said, whichever thread reads."""

from __future__ import annotations

import logging
import warnings

import pydicom
import pytest

from medgen.io.dicom_files import quiet


def test_blocks_that_overlap_do_not_end_each_others_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As those of two threads do: the one that began first is the first to end."""
    first, second = quiet(), quiet()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with caplog.at_level(logging.WARNING, "pydicom"):
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            warnings.warn("Invalid value for VR UI: '1.02'", stacklevel=1)
            pydicom.config.logger.warning("Invalid value for VR UI: '1.02'")
            assert not said and not caplog.records
            second.__exit__(None, None, None)
            warnings.warn("heard again", stacklevel=1)
            pydicom.config.logger.warning("heard again")
    assert len(said) == len(caplog.records) == 1
