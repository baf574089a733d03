"""What must hold for every image, mask, mode, tile, overlap and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from medgen.inference import Inference, estimate_memory_gb, predict_volume
from medgen.inference.predict import sweeps_of

PROFILE = settings(max_examples=40, deadline=None, derandomize=True)


class Identity(nn.Module):
    """Returns its (middle) input: the very tensor, a view of it, and a copy."""

    def __init__(self, spatial_dims: int, divisor: int = 1, input_slices: int = 1) -> None:
        super().__init__()
        self.spatial_dims, self.divisor, self.input_slices = spatial_dims, divisor, input_slices

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        assert all(size % self.divisor == 0 for size in image.shape[2:])
        middle = image.unflatten(1, (self.input_slices, -1))[:, self.input_slices // 2]
        restored = image if self.input_slices == 1 else middle
        return {"restored": restored, "view": middle[:, :1], "copy": middle.clone()}


class Convolution(nn.Module):
    """Two 3-wide convolutions: sees 2 voxels around it, and is the same everywhere."""

    divisor = 1
    reach = 2

    def __init__(self, spatial_dims: int, input_slices: int = 1, channels: int = 1) -> None:
        super().__init__()
        self.spatial_dims, self.input_slices = spatial_dims, input_slices
        layer = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        torch.manual_seed(0)
        self.network = nn.Sequential(
            layer(channels * input_slices, 4, 3, padding=1), nn.Tanh(), layer(4, 2, 3, padding=1)
        )

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        restored, score = self.network(image).split(1, dim=1)
        return {"restored": restored, "score": score}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """An image with odd and even sizes down to one voxel, perhaps a mask, and settings."""
    mode = draw(st.sampled_from(["2d", "2.5d", "3d"]))
    dims = 3 if mode == "3d" else 2
    spatial = draw(st.integers(dims, 3))
    shape = tuple(draw(st.lists(st.integers(1, 13), min_size=spatial, max_size=spatial)))
    tile = draw(st.none() | st.lists(st.integers(1, 9), min_size=dims, max_size=dims))
    views = st.lists(
        st.sampled_from(["axial", "coronal", "sagittal"]), min_size=1, max_size=3, unique=True
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    mask = None
    if draw(st.booleans()):
        mask = torch.rand((1, *shape)) < draw(st.sampled_from([0.02, 0.5]))
        mask.view(-1)[draw(st.integers(0, mask.numel() - 1))] = True
    return {
        "image": torch.randn((draw(st.integers(1, 2)), *shape)),
        "mask": mask,
        "dims": dims,
        "slices": draw(st.sampled_from([3, 5])) if mode == "2.5d" else 1,
        "divisor": draw(st.sampled_from([1, 2, 4])),
        "inference": Inference(
            mode=mode,
            views=draw(views),
            flips=draw(st.booleans()),
            tile=tile,
            overlap_fraction=draw(st.sampled_from([0.0, 0.25, 0.5, 0.7])),
            blending=draw(st.sampled_from(["gaussian", "constant"])),
            batch_size=draw(st.integers(1, 5)),
        ),
    }


@PROFILE
@given(cases())
def test_identity_network_returns_its_input_exactly(case: dict[str, Any]) -> None:
    image, mask = case["image"], case["mask"]
    before = image.clone()
    method = Identity(case["dims"], case["divisor"], case["slices"])
    told: list[tuple[int, int]] = []
    maps = predict_volume(
        method, image, mask, case["inference"], progress=lambda *counts: told.append(counts)
    )
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert {total for _, total in told} == {told[-1][0]}
    inside = torch.ones_like(image[:1], dtype=torch.bool) if mask is None else mask
    assert torch.equal(image, before)
    assert torch.equal(maps["restored"], image)
    assert torch.equal(maps["copy"], image * inside)
    assert torch.equal(maps["view"], image[:1] * inside)


@PROFILE
@given(cases(), st.integers(1, 7))
def test_batch_size_and_skipped_tiles_change_nothing_inside_the_mask(
    case: dict[str, Any], batch_size: int
) -> None:
    image, mask, inference = case["image"], case["mask"], case["inference"]
    inside = torch.ones_like(image[:1], dtype=torch.bool) if mask is None else mask
    inside.view(-1)[[0, -1]] = True  # from corner to corner, so that tiles lie the same way
    method = Convolution(case["dims"], case["slices"], len(image))
    maps = predict_volume(method, image, inside, inference)
    other = inference.model_copy(update={"batch_size": batch_size})
    everywhere = predict_volume(method, image, None, other)
    for name, map_ in maps.items():
        assert torch.allclose(map_ * inside, everywhere[name] * inside, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@PROFILE
@given(data=st.data())
def test_background_far_from_the_mask_changes_nothing(dims: int, data: st.DataObject) -> None:
    corner = data.draw(st.lists(st.integers(0, 20), min_size=3, max_size=3))
    image, mask = torch.rand((1, 30, 30, 30)), torch.zeros((1, 30, 30, 30), dtype=torch.bool)
    mask[(0, *(slice(start, start + 9) for start in corner))] = True
    method = Convolution(dims, 3 if dims == 2 else 1)
    inference = Inference(mode="3d" if dims == 3 else "2.5d", views=("axial", "sagittal"))
    maps = predict_volume(method, image, mask, inference)
    everywhere = predict_volume(method, image, None, inference)
    for name, map_ in maps.items():
        assert torch.allclose(map_[mask], everywhere[name][mask], atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@PROFILE
@given(data=st.data())
def test_tiles_equal_the_whole_where_they_overlap_by_the_field_of_view(
    dims: int, data: st.DataObject
) -> None:
    """Wherever no tile that covers a voxel has its border within reach of it."""
    size = data.draw(st.integers(18, 30))
    tile = data.draw(st.integers(12, 16))
    image = torch.randn((1, *[size] * dims))
    method = Convolution(dims)
    mode = "3d" if dims == 3 else "2d"
    whole = predict_volume(method, image, None, Inference(mode=mode))
    tiled = predict_volume(
        method, image, None, Inference(mode=mode, tile=[tile] * dims, overlap_fraction=0)
    )
    starts = [*range(0, size - tile, tile), size - tile]
    covered, clean = torch.zeros(size), torch.zeros(size)
    for start in starts:
        covered[start : start + tile] += 1
        clean[start + method.reach : start + tile - method.reach] += 1
    interior = covered == clean
    grid = torch.meshgrid(*[interior] * dims, indexing="ij")
    inside = torch.stack(grid).all(0)
    assert inside.any()
    for name, map_ in whole.items():
        assert torch.allclose(tiled[name][:, inside], map_[:, inside], atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@PROFILE
@given(data=st.data())
def test_agrees_with_monai(dims: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(9, 20), min_size=dims, max_size=dims))
    tile = data.draw(st.lists(st.integers(5, 9), min_size=dims, max_size=dims))
    overlap = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.6]))
    blending = data.draw(st.sampled_from(["gaussian", "constant"]))
    image = torch.randn((1, *sizes))
    method = Convolution(dims)
    inference = Inference(
        mode="3d" if dims == 3 else "2d",
        tile=tile,
        overlap_fraction=overlap,
        blending=blending,
        batch_size=3,
    )
    maps = predict_volume(method, image, None, inference)
    reference = SlidingWindowInferer(tile, sw_batch_size=3, overlap=overlap, mode=blending)
    with torch.no_grad():
        expected = reference(image[None], method.network)[0]
    got = torch.cat([maps["restored"], maps["score"]])
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(("mode", "dims"), [("2.5d", 2), ("3d", 3)])
@PROFILE
@given(data=st.data())
def test_memory_estimate_grows_with_image_tile_and_batch(
    mode: str, dims: int, data: st.DataObject
) -> None:
    method = Convolution(dims)
    shape = data.draw(st.lists(st.integers(1, 300), min_size=3, max_size=3))
    batch = data.draw(st.integers(1, 64))
    tile = data.draw(st.lists(st.integers(1, 64), min_size=dims, max_size=dims))
    more = data.draw(st.integers(0, 40))

    def estimate(shape: list[int], tile: list[int], batch: int) -> float:
        inference = Inference(mode=mode, tile=tile, batch_size=batch, overlap_fraction=0)
        return estimate_memory_gb(method, (1, *shape), inference)

    least = estimate(shape, tile, batch)
    assert 0 < least <= estimate(shape, tile, batch + more)
    assert least <= estimate([size + more for size in shape], tile, batch)


@PROFILE
@given(cases())
def test_windows_cover_every_voxel_and_are_counted_without_listing_them(
    case: dict[str, Any],
) -> None:
    method = Identity(case["dims"], case["divisor"], case["slices"])
    for sweep in sweeps_of(method, case["image"].shape, case["inference"]):
        covered = torch.zeros((1, *sweep.size), dtype=torch.int)
        for window in sweep.windows:
            covered[sweep.target(window)] += 1
        assert covered.min() >= 1
        assert sweep.tiles == sweep.items * len(sweep.windows)
