"""Feature extractors: named, hashed, local; a file is opened only if it is the one meant."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medgen.errors import InputError
from medgen.features import FeatureExtractor
from medgen.methods import build
from medgen.run_record import hash_file

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
SMALL = {"view_size": 32, "widths": (8, 8, 8, 8), "dimension": 6, "projector": 16}


class Brightness(nn.Module):
    """Mean of each channel: what it gives can be computed by hand."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean(dim=(2, 3))


def extractor(**extra) -> FeatureExtractor:
    return FeatureExtractor("brightness", "0" * 64, 3, 32, Brightness(), **extra)


def scripted(folder, network):
    path = folder / "network.pt"
    torch.jit.script(network.eval()).save(str(path))
    return path, hash_file(path)


def test_grey_and_colour_and_volumes():
    random = np.random.default_rng(0)
    grey = random.uniform(-1, 1, (5, 1, 32, 32)).astype(np.float32)
    extract = extractor()
    found = extract(grey)
    assert found.shape == (5, 3) and found.dtype == np.float64
    assert found == pytest.approx(np.repeat(grey.mean((2, 3)), 3, axis=1), abs=1e-6)
    volume = random.uniform(-1, 1, (2, 1, 32, 32, 7)).astype(np.float32)
    assert extract(volume)[:, 0] == pytest.approx(volume.mean((1, 2, 3, 4)), abs=1e-6)
    constant = np.full((1, 3, 40, 50), 0.25, np.float32)
    assert extract(constant) == pytest.approx(np.full((1, 3), 0.25), abs=1e-6)
    assert extract(grey[:0]).shape == (0, 3)


def test_scaling_to_another_networks_range():
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.4)
    image = np.full((1, 1, 32, 32), 0.0, np.float32)  # grey 0.5
    found = extractor(mean=mean, std=std)(image)[0]
    assert found == pytest.approx([0, 0.5, 0.5], abs=1e-6)
    assert "0.4" in extractor(mean=mean, std=std).preprocessing


def test_batches_do_not_matter():
    torch.manual_seed(0)
    extract = FeatureExtractor.of_method(build("selfsup", SMALL), "tiny", "1" * 64)
    images = np.random.default_rng(1).uniform(-1, 1, (70, 3, 40, 36)).astype(np.float32)
    whole = extract(images)
    assert whole.shape == (70, 6) and extract.dimension == 6
    assert whole[66:] == pytest.approx(extract(images[66:]), abs=1e-5)
    assert {"name", "sha256", "dimension", "preprocessing"} == set(extract.describe())


@pytest.mark.parametrize("shape", [(2, 2, 32, 32), (1, 32, 32), (2, 1, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="1 or 3"):
        extractor()(np.zeros(shape, np.float32))


def test_torchscript_is_opened_only_with_its_hash(tmp_path, monkeypatch):
    path, sha256 = scripted(tmp_path, Brightness())
    extract = FeatureExtractor.from_file(path, sha256.upper(), image_size=48)
    assert (extract.dimension, extract.sha256, extract.image_size) == (3, sha256, 48)
    opened = []
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: opened.append(a))
    with pytest.raises(InputError) as caught:
        FeatureExtractor.from_file(path, "f" * 64)
    assert sha256 in caught.value.message and "f" * 64 in caught.value.message
    assert not opened, "a file with another hash must not be run"


def test_files_that_are_no_extractors_are_refused(tmp_path):
    with pytest.raises(InputError, match="no feature extractor"):
        FeatureExtractor.from_file(tmp_path / "none.pt", "0" * 64)
    text = tmp_path / "text.pt"
    text.write_text("hello")
    with pytest.raises(InputError, match="neither TorchScript"):
        FeatureExtractor.from_file(text, hash_file(text))
    with pytest.raises(InputError, match="one vector per image"):
        FeatureExtractor.from_file(*scripted(tmp_path, nn.Conv2d(3, 2, 1)))


def test_a_training_runs_weights_are_an_extractor(tmp_path):
    method = build("selfsup", SMALL)
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in method.state_dict().items()}, path)
    with pytest.raises(InputError, match="training run"):
        FeatureExtractor.from_file(path, hash_file(path))
    record = {"config": {"method": "selfsup", "config": SMALL}}
    (tmp_path / "training.json").write_text(json.dumps(record))
    extract = FeatureExtractor.from_file(path, hash_file(path))
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        assert extract(image) == pytest.approx(method.eval().features(image).numpy(), abs=1e-6)
