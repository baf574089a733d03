"""What is particular to `restore`; what every method must do is in tests/contracts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.methods.restore import Restore, RestoreConfig
from medgen.networks.folding import fold, unfold

SMALL = (4, 4, 8, 8, 8)


@given(st.sampled_from([1, 2, 3]), st.sampled_from([2, 3]), st.integers(0, 99))
def test_unfolding_undoes_folding(factor: int, dims: int, seed: int) -> None:
    sizes = [factor * n for n in (2, 3, 4)[:dims]]
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((2, 3, *sizes), generator=generator)
    assert torch.equal(unfold(fold(image, factor), factor), image)


def test_folding_is_the_pixel_unshuffle() -> None:
    image = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fold(image, 2), F.pixel_unshuffle(image, 2))


def test_voxels_outside_the_mask_cost_nothing() -> None:
    torch.manual_seed(0)
    method = Restore(RestoreConfig(spatial_dims=2, features=SMALL)).eval()
    batch = {
        "image": torch.rand(2, 1, 32, 32),
        "healthy": torch.rand(2, 1, 32, 32),
        "anomaly": torch.zeros(2, 1, 32, 32),
        "mask": torch.zeros(2, 1, 32, 32),
    }
    batch["mask"][..., 8:24, 8:24] = 1
    batch["anomaly"][..., 12:16, 12:16] = 1
    loss = next(method.losses(batch))[1]
    changed = {**batch, "healthy": batch["healthy"] + 3 * (1 - batch["mask"])}
    assert torch.equal(next(method.losses(changed))[1], loss)


def test_the_restored_image_is_the_middle_slice_plus_a_correction() -> None:
    """With the last layer at zero the network must return the middle slice, not another one."""
    method = Restore(RestoreConfig(spatial_dims=2, input_slices=5, features=SMALL, fold=2)).eval()
    for parameter in method.network.final_conv.parameters():
        torch.nn.init.zeros_(parameter)
    image = torch.rand(1, 5, 32, 64)
    outputs = method.predict(image)
    assert torch.equal(outputs["restored"], image[:, 2:3])
    assert torch.equal(outputs["log_odds"], torch.zeros(1, 1, 32, 64))


@pytest.mark.parametrize(("dims", "slices"), [(2, 4), (3, 3)])
def test_slices_must_be_odd_and_flat(dims: int, slices: int) -> None:
    with pytest.raises(InputError, match="odd"):
        Restore(RestoreConfig(spatial_dims=dims, input_slices=slices, features=SMALL))


def test_the_size_error_names_the_size_to_pad_to() -> None:
    method = Restore(RestoreConfig(spatial_dims=2, features=SMALL, fold=2))
    with pytest.raises(InputError, match="multiples of 32") as error:
        method.predict(torch.rand(1, 1, 40, 64))
    assert "(64, 64)" in str(error.value)
