"""What a GAN does, in the plane: data, what the generator makes of noise, what the critic thinks.

A point is an image with two channels and one pixel. The generator bends a cloud of noise until it
lies on eight narrow Gaussians; the background shows the critic's field, which pulls points towards
where it is red. Run it with the name of the picture to save:
`python examples/gan_in_the_plane.py out.png`.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import torch

from medgen.methods import build
from medgen.toy import MixtureConfig, MixtureSource

STEPS = (0, 100, 300, 900)  # when to look


def main(picture: str) -> None:
    """Train for some seconds, looking four times."""
    torch.manual_seed(0)
    source = MixtureSource(MixtureConfig(batch_size=128))
    settings = {
        "architecture": "mlp", "channels": 2, "image_size": (1, 1), "latent": 8, "width": 128,
        "penalty": "r1", "penalty_weight": 0.1, "generator_rate": 1e-3, "critic_rate": 1e-3,
    }  # fmt: skip
    method = build("gan", settings)
    optimizers = method.optimizers()
    latent = torch.randn(1000, *method.latent_shape)

    line = torch.linspace(-1, 1, 60)
    plane = torch.cartesian_prod(line, line)[:, :, None, None]
    _, axes = plt.subplots(1, 1 + len(STEPS), figsize=(3 * (1 + len(STEPS)), 3.2))
    axes[0].scatter(*source.batch(0)["image"].flatten(1).T, s=4, color="black")
    axes[0].set_title("data")
    for axis, until in zip(axes[1:], STEPS, strict=True):
        while int(method.steps) < until:
            for name, loss, _ in method.losses(source.batch(int(method.steps))):
                optimizers[name].zero_grad()
                loss.backward()
                optimizers[name].step()
        with torch.inference_mode():
            points = method.generate(latent)["image"].flatten(1)
            field = torch.sigmoid(method.critic(plane).real).reshape(60, 60)
        axis.pcolormesh(line, line, field.T, cmap="coolwarm", vmin=0, vmax=1)
        axis.scatter(*points.T, s=4, color="black")
        axis.set_title(f"step {until}")
    for axis in axes:
        axis.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])

    coverage = source.coverage(points)
    print(f"modes covered: {coverage.modes} of 8; near a mode: {coverage.near:.0%} of the points")
    assert coverage.modes >= 7
    plt.tight_layout()
    plt.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1])
