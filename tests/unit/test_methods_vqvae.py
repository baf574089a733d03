from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medgen.methods import build
from medgen.networks.codebook import Codebook, CodePrior

SMALL: dict[str, Any] = {
    "spatial_dims": 2,
    "features": (4, 8),
    "latent_channels": 3,
    "codes": 7,
    "prior_width": 8,
    "prior_layers": 1,
}
IMAGE = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))


def make(**extra: Any) -> Any:
    """A network whose codes are vectors of the image."""
    torch.manual_seed(0)
    method = build("vqvae", {**SMALL, **extra}).eval()
    latent = method.encode(IMAGE).detach()
    method.codebook.update(latent, method.codebook.nearest(latent))
    return method


@pytest.mark.parametrize("grid", [(4, 5), (3, 2, 4)])
def test_the_nearest_code_is_that_of_all_distances(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    book = Codebook(9, 4, 0.9)
    latent = torch.randn(3, 4, *grid)
    codes = book.nearest(latent)
    rows = latent.movedim(1, -1).reshape(-1, 4)
    assert torch.equal(codes.flatten(), torch.cdist(rows, book.vectors).argmin(1))
    assert codes.shape == (3, *grid)
    vectors = book.look_up(codes)
    assert vectors.shape == latent.shape
    assert torch.equal(vectors.movedim(1, -1)[1, 2, 1], book.vectors[codes[1, 2, 1]])


def test_codes_are_running_means_and_neglected_ones_begin_anew() -> None:
    torch.manual_seed(0)
    book = Codebook(3, 2, decay=0.99)
    latent = torch.randn(4, 2, 6)
    rows = latent.movedim(1, -1).reshape(-1, 2)
    book.update(latent, book.nearest(latent))
    assert all((row == rows).all(1).any() for row in book.vectors)  # none had been used

    book.decay = 0.5
    codes = torch.zeros(4, 6, dtype=torch.int64)
    codes[:2] = 1
    first, counts = book.vectors.clone(), book.counts.clone()
    book.update(latent, codes)
    for number, members in ((0, latent[2:]), (1, latent[:2])):
        members = members.movedim(1, -1).reshape(-1, 2)
        total = 0.5 * first[number] * counts[number] + 0.5 * members.sum(0)
        torch.testing.assert_close(
            book.vectors[number], total / (0.5 * counts[number] + 0.5 * len(members))
        )
    for _ in range(4):
        book.update(latent, codes)
    assert (book.vectors[2] == rows).all(1).any()


@pytest.mark.parametrize("grid", [(5, 6), (4, 3, 5)])
def test_the_prior_sees_only_earlier_codes(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    prior = CodePrior(len(grid), codes=5, width=6, layers=2)
    codes = torch.randint(5, (1, *grid))
    before = prior(codes).flatten(2)
    for place in range(before.shape[2]):
        other = codes.clone().flatten()
        other[place] = (other[place] + 1) % 5
        after = prior(other.view_as(codes)).flatten(2)
        assert torch.equal(after[..., : place + 1], before[..., : place + 1])
        if place + 1 < before.shape[2] - grid[-1]:
            assert not torch.equal(after, before)


def test_gradients_pass_through_the_codes() -> None:
    method = make()
    ((_, loss, _), _) = method.losses({"healthy": IMAGE})
    loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in method.to_latent.parameters())
    assert all(weight.grad is None for weight in method.prior.parameters())


def test_the_loss_is_copying_and_commitment() -> None:
    method = make(commitment=0.5)
    latent = method.encode(IMAGE)
    vectors = method.codebook.look_up(method.codebook.nearest(latent))
    copy = method.decode(latent)
    expected = F.mse_loss(copy, IMAGE) + 0.5 * F.mse_loss(latent, vectors)
    _, loss, _ = next(iter(method.losses({"healthy": IMAGE})))
    torch.testing.assert_close(loss, expected)


def test_improbable_codes_are_replaced_by_the_most_probable() -> None:
    method = make(surprise=3.0)
    for weight in method.prior.last[-1].parameters():
        torch.nn.init.zeros_(weight)
    with torch.no_grad():
        method.prior.last[-1].bias[2] = 5.0  # whatever stands beside it
    log_p = torch.log_softmax(method.prior.last[-1].bias, 0)
    codes = method.codebook.nearest(method.encode(IMAGE))
    assert len(codes.unique()) > 1
    outputs = method.predict(IMAGE)
    expected = F.interpolate(-log_p[codes][:, None], (16, 24), mode="bilinear")
    torch.testing.assert_close(outputs["score"], expected)
    everywhere = method.codebook.look_up(torch.full_like(codes, 2))
    assert torch.equal(outputs["restored"], method._draw(everywhere))


def test_probable_codes_stay() -> None:
    method = make(surprise=100.0)
    restored = method.predict(IMAGE)["restored"]
    assert torch.equal(restored, method.decode(method.encode(IMAGE)))
