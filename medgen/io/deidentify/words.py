"""Whether a description consists of words of imaging only (Clean Descriptors, PS3.15 E.3.5)."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_WORDS = Path(__file__).resolve().parents[2] / "data" / "descriptor_words.txt"
_LONGEST = 128
_SPLIT = re.compile(r"[^a-z0-9.]+")
# 5, 1.5, 3mm, 2000ms, 90deg; echo 2, b1000, te90; kernels such as B30f, Br38.
_SIZE = re.compile(r"\d{1,3}(\.\d{1,3})?(mm|cm|ms|s|sec|min|deg|t|hz|kv|kvp|mas|ml|mm3|x)")
_SETTING = re.compile(r"(b|te|tr|ti|fa|e|ph|et|nex|fov)\d{1,4}|(b|br|bl|bf|hr|h|i|j|q)\d{2}[fhsx]?")
_NUMBER = re.compile(r"\d{1,3}(\.\d{1,2})?")
_MOST_NUMBERS = 2  # three could be a date


@cache
def _known() -> frozenset[str]:
    lines = _WORDS.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def is_safe(text: str) -> bool:
    """True if every word is known to name nobody and the numbers are too few to be a date."""
    if len(text) > _LONGEST or not text.isascii():
        return False
    numbers = 0
    text = text.lower().replace("w/o", "wo ")
    for word in (part.strip(".") for part in _SPLIT.split(text)):
        if not word or word in _known() or _SIZE.fullmatch(word) or _SETTING.fullmatch(word):
            continue
        if not _NUMBER.fullmatch(word):
            return False
        numbers += 1
    return numbers <= _MOST_NUMBERS
