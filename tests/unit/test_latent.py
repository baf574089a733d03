"""The latent space: codes, the plane that is shown, and what is decoded over it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining_cases import bars, trained
from sklearn.decomposition import PCA

from medgen.errors import InputError
from medgen.tasks.latent import between, ends, grid_places, latent_space, plane_of
from medgen.tasks.trained import open_trained


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return bars(tmp_path_factory.mktemp("bars") / "images", 24)


@pytest.fixture(scope="module")
def space(images, tmp_path_factory):
    run = trained(tmp_path_factory.mktemp("runs") / "vae", images, "vae")
    return latent_space(open_trained(run), images, {})


def test_the_plane_is_that_of_scikit_learns_pca():
    random = np.random.default_rng(0)
    codes = random.standard_normal((60, 7)) @ random.standard_normal((7, 7)) + 3
    plane = plane_of(codes)
    pca = PCA(2).fit(codes)
    assert np.allclose(np.abs(np.sum(plane.axes * pca.components_, axis=1)), 1)
    assert np.allclose(plane.explained, pca.explained_variance_ratio_)
    assert np.allclose(np.abs(plane.project(codes)), np.abs(pca.transform(codes)))


@given(st.integers(2, 9), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_places_lifted_to_codes_come_back(size, seed):
    random = np.random.default_rng(seed)
    plane = plane_of(random.standard_normal((12, size)))
    places = random.standard_normal((5, 2))
    assert np.allclose(plane.project(plane.lift(places)), places)


def test_two_numbers_are_shown_as_they_are():
    codes = np.random.default_rng(0).standard_normal((9, 2))
    plane = plane_of(codes)
    assert plane.explained is None
    assert np.array_equal(plane.project(codes), codes)


def test_codes_without_a_plane_are_refused():
    with pytest.raises(InputError, match="all codes are the same"):
        plane_of(np.ones((5, 4)))
    with pytest.raises(InputError, match="single numbers"):
        plane_of(np.arange(5.0)[:, None])


def test_codes_are_the_posteriors_means_of_the_images_as_trained_on(space):
    method, images = space.trained.method, space.images.images
    assert images.shape == (24, 1, 32, 32)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    with torch.inference_mode():
        mean, _ = method.encode(images)
    assert np.allclose(space.codes, mean.numpy(), atol=1e-5)
    assert space.names == ("lying", "standing")
    assert space.active is not None and 0 <= space.active <= 3


def test_decoding_an_images_own_code_is_what_the_network_predicts(space):
    with torch.inference_mode():
        expected = space.trained.method.predict(space.images.images[:3])["restored"]
    assert torch.allclose(space.decode(space.codes[:3]), expected, atol=1e-5)


def test_a_spatial_code_is_decoded_at_its_places(images, tmp_path):
    run = trained(tmp_path / "run", images, "vae", latent="spatial", image_size=None)
    space = latent_space(open_trained(run), images, {})
    assert space.codes.shape == (24, 3 * 8 * 8)
    with torch.inference_mode():
        expected = space.trained.method.predict(space.images.images[:2])["restored"]
    assert torch.allclose(space.decode(space.codes[:2]), expected, atol=1e-5)


def test_the_grid_runs_as_the_scatter_does():
    places = np.random.default_rng(0).standard_normal((200, 2))
    lattice = grid_places(places, 4).reshape(4, 4, 2)
    assert (np.diff(lattice[..., 0], axis=1) > 0).all(), "to the right"
    assert (np.diff(lattice[..., 1], axis=0) < 0).all(), "from the top down"


def test_an_interpolation_starts_and_ends_at_the_images(space):
    start, end = ends(space, None)
    assert (space.images.labels[start], space.images.labels[end]) == (0, 1)
    names = [space.images.items[n].path.name for n in (start, end)]
    assert ends(space, (names[0], names[1])) == (start, end)
    walk = between(space, start, end, 5)
    assert np.allclose(walk[[0, -1]], space.codes[[start, end]])
    with pytest.raises(InputError, match=r"no image is called 'x.png'"):
        ends(space, ("x.png", names[0]))


def test_a_picture_is_shown_as_it_is_stored(space):
    """Preparation turns it to the patient's axes; the picture must come back."""
    from PIL import Image

    number = 5
    shown = space.images.picture(space.images.images[number])
    stored = np.asarray(Image.open(space.images.items[number].path))
    same = np.abs(shown[..., 0].astype(int) - stored) <= 1
    assert same.mean() > 0.98, "all but a dark corner, which preparation takes for background"
