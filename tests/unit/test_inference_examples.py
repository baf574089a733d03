"""Single behaviours of whole-case prediction that an example shows best."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medgen.errors import InputError, MedgenError
from medgen.inference import Inference, estimate_memory_gb, predict_volume
from medgen.inference.memory import UNTRACED_COPIES, WORKSPACE, trace


class Method(nn.Module):
    """A network made of a function, which remembers the batches it was given."""

    divisor = 1

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        spatial_dims: int = 2,
        input_slices: int = 1,
        name: str = "score",
    ) -> None:
        super().__init__()
        self.function, self.name = function, name
        self.spatial_dims, self.input_slices = spatial_dims, input_slices
        self.batches: list[Tensor] = []

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        self.batches.append(image.clone())
        return {self.name: self.function(image)}


def unet(spatial_dims: int) -> nn.Module:
    from monai.networks.nets import BasicUNet

    torch.manual_seed(0)
    network = BasicUNet(spatial_dims, 1, 1, features=(4, 4, 8, 8, 8, 4), norm="batch")
    method = Method(network, spatial_dims)
    method.divisor = 16
    method.add_module("network", network)
    return method


def test_importing_the_settings_does_not_load_torch() -> None:
    code = "import sys, medgen.inference; print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "2d", "tile": (8, 8, 8)},
        {"mode": "3d", "tile": (8, 8)},
        {"tile": (8, 0)},
        {"overlap_fraction": 1.0},
        {"views": ()},
        {"views": ("axial", "axial")},
        {"batch_size": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Inference(**settings)


def test_neighbouring_slices_are_channels_and_repeat_at_the_ends() -> None:
    method = Method(lambda batch: batch[:, :2] * 0, input_slices=3)
    image = torch.arange(4.0) + torch.tensor([0.0, 10.0])[:, None, None, None].expand(2, 3, 3, 1)
    predict_volume(method, image, None, Inference())
    (batch,) = method.batches
    seen = batch[:, :, 0, 0].tolist()
    assert seen == [
        [0, 10, 0, 10, 1, 11],
        [0, 10, 1, 11, 2, 12],
        [1, 11, 2, 12, 3, 13],
        [2, 12, 3, 13, 3, 13],
    ]


@pytest.mark.parametrize(("view", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_views_cut_along_their_axis_and_are_averaged(view: str, axis: int) -> None:
    """The slice mean depends on the view; that of all views is the average of the three."""
    method = Method(lambda batch: batch.mean((2, 3), keepdim=True).expand_as(batch))
    image = torch.rand((1, 4, 5, 6))
    others = tuple(dim + 1 for dim in range(3) if dim != axis)
    one = predict_volume(method, image, None, Inference(mode="2d", views=(view,)))["score"]
    assert torch.allclose(one, image.mean(others, keepdim=True).expand_as(image))
    views = ("sagittal", "coronal", "axial")
    every = predict_volume(method, image, None, Inference(mode="2d", views=views))["score"]
    each = [
        predict_volume(method, image, None, Inference(mode="2d", views=(view,)))["score"]
        for view in views
    ]
    assert torch.allclose(every, torch.stack(each).mean(0), atol=1e-6)


@pytest.mark.parametrize("views", [("axial",), ("coronal",), ("sagittal",)])
@pytest.mark.parametrize("mode", ["2d", "2.5d", "3d"])
def test_flips_make_the_result_symmetric(mode: str, views: tuple[str, ...]) -> None:
    """A mirrored head gets the mirrored map, however one-sided the network is."""
    dims, slices = (3, 1) if mode == "3d" else (2, 3 if mode == "2.5d" else 1)
    torch.manual_seed(0)
    layer = nn.Conv3d if dims == 3 else nn.Conv2d
    method = Method(layer(slices, 1, 3, padding=1), dims, slices)
    image = torch.rand((1, 6, 5, 4))
    inference = Inference(mode=mode, views=views, flips=True)
    there = predict_volume(method, image, None, inference)["score"]
    back = predict_volume(method, image.flip(1), None, inference)["score"].flip(1)
    if mode != "2d" or views != ("sagittal",):  # slices of that view know nothing of left or right
        plain = predict_volume(method, image, None, Inference(mode=mode, views=views))["score"]
        assert not torch.allclose(there, plain, atol=1e-3)
    assert torch.allclose(there, back, atol=1e-5)


def test_tiles_without_a_mask_voxel_are_not_run() -> None:
    method = Method(lambda batch: batch + 1, 3)
    image, mask = torch.rand((1, 16, 16, 16)), torch.zeros((1, 16, 16, 16), dtype=torch.bool)
    mask[0, 3, 3, 3] = True
    told: list[tuple[int, int]] = []
    inference = Inference(mode="3d", tile=(4, 4, 4), overlap_fraction=0, batch_size=8)
    maps = predict_volume(
        method, image, mask, inference, progress=lambda done, total: told.append((done, total))
    )
    assert [batch.shape for batch in method.batches] == [(1, 1, 4, 4, 4)]
    assert torch.equal(method.batches[0][0], image[:, :4, :4, :4])
    assert told == [(1, 1)]
    assert maps["score"].count_nonzero() == 1


def test_whole_slices_are_cut_to_the_mask_and_some_background() -> None:
    method = Method(lambda batch: batch)
    image, mask = torch.rand((1, 40, 50, 60)), torch.zeros((1, 40, 50, 60), dtype=torch.bool)
    mask[0, 20:22, 0, 30:33] = True
    score = predict_volume(method, image, mask, Inference(mode="2d"))["score"]
    (batch,) = method.batches
    assert batch.shape == (3, 1, 10, 5)
    assert torch.equal(score, image * mask)


def test_the_surroundings_of_the_mask_can_be_shown() -> None:
    method = Method(lambda tiles: tiles)
    mask = torch.zeros(1, 64, 64)
    mask[0, 30, 30] = 1
    for context, size in ((0, 1), (4, 9), (12, 25)):
        predict_volume(
            method, torch.rand(1, 64, 64), mask, Inference(mode="2d", context_voxels=context)
        )
        assert method.batches[-1].shape == (1, 1, size, size)


def test_outside_the_mask_restored_is_the_image() -> None:
    image, mask = torch.rand((1, 5, 6)), torch.rand((1, 5, 6)) < 0.5
    method = Method(lambda batch: batch - 1, name="restored")
    restored = predict_volume(method, image, mask, Inference(mode="2d"))["restored"]
    assert torch.equal(restored, torch.where(mask, image - 1, image))


def test_padding_reflects_and_keeps_the_image_centred() -> None:
    method = Method(lambda batch: batch)
    method.divisor = 8
    image = torch.rand((1, 5, 1))
    predict_volume(method, image, None, Inference(mode="2d"))
    (batch,) = method.batches
    expected = np.pad(image.numpy(), ((0, 0), (1, 2), (3, 4)), mode="reflect")
    assert np.array_equal(batch[0].numpy(), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_threads_and_repetition_do_not_change_the_result(dims: int) -> None:
    method, image = unet(dims), torch.rand((1, 20, 33, 18))
    inference = Inference(mode="3d", tile=(16, 32, 16)) if dims == 3 else Inference(mode="2d")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = predict_volume(method, image, None, inference)["score"]
        again = predict_volume(method, image, None, inference)["score"]
        torch.set_num_threads(2)
        two = predict_volume(method, image, None, inference)["score"]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, again)
    assert torch.allclose(one, two, atol=1e-4)


def test_the_network_is_evaluated_and_its_training_modes_put_back() -> None:
    method = unet(2)
    method.train()
    method.network.down_1.eval()
    modes = [module.training for module in method.modules()]
    state = {name: value.clone() for name, value in method.state_dict().items()}
    maps = predict_volume(method, torch.rand((1, 16, 16)), None, Inference(mode="2d"))
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    maps["score"] += 1  # an ordinary tensor, free to be changed
    assert not maps["score"].requires_grad


def test_image_metadata_and_number_type_do_not_matter() -> None:
    from monai.data import MetaTensor

    method = Method(lambda batch: batch.half())
    image = MetaTensor(torch.arange(30).reshape(1, 5, 6))
    score = predict_volume(method, image, image > 3, Inference(mode="2d"))["score"]
    assert type(score) is torch.Tensor
    assert score.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "dims", "slices", "mode", "words"),
    [
        ((1, 8, 8), 3, 1, "3d", "needs an image (C, X, Y, Z)"),
        ((1, 8), 2, 1, "2d", "needs an image (C, X, Y[, Z])"),
        ((1, 8, 8, 8, 2), 2, 1, "2d", "needs an image"),
        ((1, 8, 0), 2, 1, "2d", "needs an image"),
        ((1, 8, 8, 8), 2, 1, "3d", "does not fit a 2-D network"),
        ((1, 8, 8, 8), 3, 1, "2.5d", "does not fit a 3-D network"),
        ((1, 8, 8, 8), 2, 3, "2d", "reads 3 slice(s)"),
    ],
)
def test_images_and_networks_that_do_not_fit_are_refused(
    shape: tuple[int, ...], dims: int, slices: int, mode: str, words: str
) -> None:
    method = Method(lambda batch: batch, dims, slices)
    with pytest.raises(InputError) as error:
        predict_volume(method, torch.zeros(shape), None, Inference(mode=mode))
    assert words in error.value.message


def test_masks_that_do_not_fit_or_are_empty_are_refused() -> None:
    method, image = Method(lambda batch: batch), torch.zeros((1, 8, 8))
    with pytest.raises(InputError, match="expected a mask"):
        predict_volume(method, image, torch.ones((1, 8, 9)), Inference(mode="2d"))
    with pytest.raises(InputError, match="the mask is empty"):
        predict_volume(method, image, torch.zeros((1, 8, 8)), Inference(mode="2d"))


def test_a_network_that_changes_the_size_is_named() -> None:
    method = Method(lambda batch: batch[..., 1:])
    with pytest.raises(MedgenError, match="the network's map 'score' has the shape"):
        predict_volume(method, torch.zeros((1, 8, 8)), None, Inference(mode="2d"))


def test_a_huge_image_is_refused_before_anything_is_allocated() -> None:
    huge = torch.zeros(1).expand(1, 1024, 1024, 1024)
    with pytest.raises(
        InputError, match=r"about \d+\.\d GB even one tile .* limit is 2 GB"
    ) as error:
        predict_volume(unet(3), huge, None, Inference(mode="3d"), max_memory_gb=2)
    assert error.value.hint is not None


def test_batches_shrink_to_keep_the_memory_limit() -> None:
    method, image = unet(2), torch.rand((1, 32, 32, 40))
    full = Inference(mode="2d", batch_size=32)
    least = estimate_memory_gb(method, image.shape, full.model_copy(update={"batch_size": 1}))
    limit = (estimate_memory_gb(method, image.shape, full) + least) / 2
    maps = predict_volume(method, image, None, full, max_memory_gb=limit)
    largest = max(len(batch) for batch in method.batches if not batch.is_meta)
    assert 1 <= largest < 32
    assert torch.allclose(
        maps["score"], predict_volume(method, image, None, full)["score"], atol=1e-5
    )


def test_trace_counts_what_is_alive_at_once() -> None:
    """In a chain of layers: the batch, a layer's input and its output."""
    chain = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)])
    peak, channels = trace(lambda batch: {"a": chain(batch), "b": batch}, (2, 4, 32, 32))
    size = 4 * 2 * 4 * 32 * 32
    assert peak == size + WORKSPACE * 3 * size
    assert channels == 8


def test_a_network_that_looks_at_values_gets_a_cautious_estimate() -> None:
    def scaled(batch: Tensor) -> dict[str, Tensor]:
        return {"score": batch / batch.max().item()}

    peak, _ = trace(scaled, (1, 1, 8, 8))
    assert peak == UNTRACED_COPIES * 4 * 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dims", [2, 3])
def test_cuda_agrees_with_cpu(dims: int) -> None:
    method, image = unet(dims), torch.rand((1, 48, 40, 36))
    mask = torch.rand((1, 48, 40, 36)) < 0.1
    tile = (32, 32, 16)[:dims]
    inference = Inference(mode="3d" if dims == 3 else "2d", tile=tile, flips=True)
    there = predict_volume(method, image, mask, inference, device="cuda")["score"]
    here = predict_volume(method, image, mask, inference, device="cpu")["score"]
    assert there.device.type == "cpu"
    assert torch.allclose(there, here, atol=1e-4)
