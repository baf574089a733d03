"""How packages store weights."""

from __future__ import annotations

import lzma

import pytest
import torch
from safetensors.torch import load

from medgen.package.weights import SIGNIFICANT_BITS, compressed, rounded


def test_rounding_is_to_the_nearest_number_of_so_many_bits() -> None:
    torch.manual_seed(0)
    value = (torch.rand(64, 64) + 0.5) * torch.logspace(-3, 3, 64)
    found = rounded(value).float()
    mantissa, _ = torch.frexp(found)
    steps = mantissa * 2.0**SIGNIFICANT_BITS
    assert torch.equal(steps, steps.round()), "more bits than are kept"
    # Half a step, and the rounding to half precision before it.
    assert ((found - value).abs() <= value * (2.0**-SIGNIFICANT_BITS + 2.0**-11)).all()
    assert abs(float((found / value).mean()) - 1) < 1e-3, "not to the nearest, but down"
    assert torch.equal(rounded(-value), -rounded(value))


@pytest.mark.parametrize("value", [0.0, -0.0, 65504.0, -65504.0, 6e-8, 1.0, -2.5])
def test_extremes_stay_finite_and_simple_numbers_stay_themselves(value: float) -> None:
    found = float(rounded(torch.full((2, 2), value))[0, 0])
    assert found == pytest.approx(value, rel=2.0**-SIGNIFICANT_BITS, abs=3e-7)
    assert abs(found) < float("inf")


def test_rounding_twice_is_rounding_once_and_vectors_keep_half_precision() -> None:
    value = torch.randn(16, 16)
    assert torch.equal(rounded(rounded(value)), rounded(value))
    assert torch.equal(rounded(value[0]), value[0].half())
    counts = torch.arange(4)
    assert rounded(counts) is counts


def test_any_reader_of_xz_gets_the_weights_back_and_they_are_small() -> None:
    weights = {"a": rounded(torch.randn(256, 256)), "b": torch.arange(5)}
    packed = compressed(weights)
    again = load(lzma.decompress(packed))
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert len(packed) < 0.75 * 2 * 256 * 256
