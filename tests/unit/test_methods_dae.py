from __future__ import annotations

from typing import Any

import pytest
import torch

from medgen.errors import InputError
from medgen.methods import build


def make(dims: int = 2, **extra: Any) -> Any:
    torch.manual_seed(0)
    return build("dae", {"spatial_dims": dims, "features": (8, 8, 8, 8, 8), **extra})


@pytest.mark.parametrize("dims", [2, 3])
def test_noise_is_coarse_and_has_the_deviation_of_its_grid(dims: int) -> None:
    method = make(dims, noise_deviation=0.5, noise_grid=5)
    noise = method.noise(torch.zeros(40, 1, *[33] * dims))
    assert abs(noise.mean()) < 0.02
    # Every eighth voxel is a grid point, up to the shift; between them noise is interpolated.
    assert 0.25 < noise.std() < 0.5
    axis = noise.movedim(2, -1).flatten(0, -2)
    step = (axis[:, 1:] - axis[:, :-1]).abs()
    assert step.median() < 0.2 * axis.abs().median() / 0.67  # smooth, but for the seam
    at_grid_points = max(axis[:, start::8].std() for start in range(8))
    assert at_grid_points > noise.std()


def test_noise_moves_from_draw_to_draw() -> None:
    method, image = make(), torch.zeros(1, 1, 32, 32)
    seams = set()
    for seed in range(8):
        torch.manual_seed(seed)
        noise = method.noise(image)[0, 0]
        seams.add(int((noise[1:] - noise[:-1]).abs().mean(1).argmax()))
    assert len(seams) > 3


def test_noise_depends_on_the_global_seed_only() -> None:
    method, image = make(), torch.zeros(2, 1, 32, 32)
    torch.manual_seed(5)
    first = method.noise(image)
    torch.manual_seed(5)
    assert torch.equal(first, method.noise(image))


def test_noise_and_loss_stay_in_the_foreground() -> None:
    method = make().eval()
    seen = []
    method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    healthy = torch.rand(2, 1, 32, 32)
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:20, 8:20] = 1
    ((name, loss, _),) = method.losses({"healthy": healthy, "mask": mask})
    outside = mask == 0
    assert name == "network"
    assert torch.equal(seen[0][outside], healthy[outside])
    assert not torch.equal(seen[0][~outside], healthy[~outside])
    error = (method.network(seen[0]) - healthy).square()
    torch.testing.assert_close(loss, error[mask.bool()].mean())


def test_features_must_fit_the_groups() -> None:
    with pytest.raises(InputError, match="multiples of 8"):
        make(features=(8, 8, 12, 8, 8))
