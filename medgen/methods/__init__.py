"""Published methods, one file each, and the one registry that knows them all.

A method is an ``nn.Module`` with a ``Config``; see ``CONTRIBUTING.md`` for what it must offer. A
method whose paper differs from another's only in settings is a variant: a name for these settings.
Importing this module imports no method and no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from medgen.config import Config
from medgen.errors import InputError

if TYPE_CHECKING:
    from torch import nn

# Name on the command line and in packages: module and class. Only what stands here can be built.
REGISTRY: dict[str, tuple[str, str]] = {
    "intensity": ("medgen.methods.intensity", "Intensity"),
    "pca": ("medgen.methods.pca", "PCA"),
    "autoencoder": ("medgen.methods.autoencoder", "Autoencoder"),
    "vae": ("medgen.methods.vae", "VAE"),
    "gmvae": ("medgen.methods.gmvae", "GMVAE"),
    "vqvae": ("medgen.methods.vqvae", "VQVAE"),
    "dae": ("medgen.methods.dae", "DAE"),
    "restore": ("medgen.methods.restore", "Restore"),
    "mae": ("medgen.methods.mae", "MAE"),
    "aae": ("medgen.methods.aae", "AAE"),
    "anovaegan": ("medgen.methods.anovaegan", "AnoVAEGAN"),
    "f_anogan": ("medgen.methods.f_anogan", "FAnoGAN"),
    "alpha_gan": ("medgen.methods.alpha_gan", "AlphaGAN"),
    "fpi": ("medgen.methods.fpi", "FPI"),
    "dn2": ("medgen.methods.dn2", "DN2"),
    "padim": ("medgen.methods.padim", "PaDiM"),
    "pddpm": ("medgen.methods.pddpm", "PDDPM"),
    "gan": ("medgen.methods.gan", "GAN"),
    "progan": ("medgen.methods.progan", "ProGAN"),
    "stylegan2": ("medgen.methods.stylegan2", "StyleGAN2"),
    "spade": ("medgen.methods.spade", "SPADE"),
    "vaegan": ("medgen.methods.vaegan", "VAEGAN"),
    "selfsup": ("medgen.methods.selfsup", "SelfSup"),
    "inpaint_unet": ("medgen.methods.inpaint_unet", "InpaintUNet"),
    "context_encoder": ("medgen.methods.context_encoder", "ContextEncoder"),
    "gated_conv": ("medgen.methods.gated_conv", "GatedConv"),
    "ip_medgan": ("medgen.methods.ip_medgan", "IPMedGAN"),
    "srresnet": ("medgen.methods.srresnet", "SRResNet"),
    "esrgan": ("medgen.methods.esrgan", "ESRGAN"),
    "dncnn": ("medgen.methods.dncnn", "DnCNN"),
    "noise2void": ("medgen.methods.noise2void", "Noise2Void"),
    "pix2pix": ("medgen.methods.pix2pix", "Pix2Pix"),
    "cyclegan": ("medgen.methods.cyclegan", "CycleGAN"),
    "cut": ("medgen.methods.cut", "CUT"),
    "stargan": ("medgen.methods.stargan", "StarGAN"),
    "uaggan": ("medgen.methods.uaggan", "UAGGAN"),
}

# A published method that is a registered one with these settings. Packages name the latter.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp_ae": ("autoencoder", {"architecture": "mlp", "latent_channels": 2}),
    "linear_ae": ("autoencoder", {"architecture": "linear"}),
    "context_ae": ("autoencoder", {"corruption": "context"}),
    "constrained_ae": ("autoencoder", {"constraint": 1.0}),
    "bayesian_ae": ("autoencoder", {"dropout": 0.2}),
    "perceptual_ae": ("autoencoder", {"perceptual": 0.1}),
    "beta_vae": ("vae", {"reduction": "sum", "beta": 4.0}),
    "vae_restoration": ("vae", {"restoration_steps": 50}),
    "cevae": ("vae", {"context_weight": 0.5, "gradient_score": True}),
    "gmvae_restoration": ("gmvae", {"restoration_steps": 50}),
    "constrained_aae": (
        "aae",
        {"loss": "wasserstein", "critic_steps": 5, "constraint_weight": 1.0},
    ),
    "dcgan": ("gan", {"architecture": "dcgan", "loss": "non_saturating"}),
    "lsgan": ("gan", {"architecture": "dcgan", "loss": "least_squares"}),
    "wgan": (
        "gan",
        {
            "architecture": "dcgan",
            "loss": "wasserstein",
            "clip": 0.01,
            "n_critic": 5,
            "optimizer": "rmsprop",
            "generator_rate": 5e-5,
            "critic_rate": 5e-5,
        },
    ),
    "wgan_gp": (
        "gan",
        {
            "architecture": "resnet",
            "loss": "wasserstein",
            "penalty": "wgan_gp",
            "penalty_weight": 10.0,
            "n_critic": 5,
            "betas": (0.0, 0.9),
            "generator_rate": 1e-4,
            "critic_rate": 1e-4,
        },
    ),
    "hinge": (
        "gan",
        {
            "architecture": "resnet",
            "loss": "hinge",
            "spectral_norm": "both",
            "betas": (0.0, 0.9),
            "generator_rate": 1e-4,
            "critic_rate": 4e-4,
        },
    ),
    "cgan": ("gan", {"architecture": "dcgan", "conditioning": "concatenation"}),
    "acgan": ("gan", {"architecture": "dcgan", "conditioning": "auxiliary"}),
    "projection_gan": (
        "gan",
        {
            "architecture": "resnet",
            "loss": "hinge",
            "conditioning": "projection",
            "spectral_norm": "critic",
            "n_critic": 5,
            "betas": (0.0, 0.9),
            "generator_rate": 2e-4,
            "critic_rate": 2e-4,
        },
    ),
    "pathologygan": ("stylegan2", {"loss": "relativistic_average", "spectral_norm": True}),
    "cutpaste_seg": ("fpi", {"paste": "cutpaste"}),
    "srgan": ("srresnet", {"adversarial_weight": 1e-3, "feature_weight": 1.0, "pixel_weight": 0.0}),
    "rrdb": ("esrgan", {"adversarial_weight": 0.0, "feature_weight": 0.0, "pixel_weight": 1.0}),
    "denoising_ae": ("dncnn", {"architecture": "autoencoder"}),
    "residual_unet": ("dncnn", {"architecture": "unet"}),
    "unet_l1": ("pix2pix", {"adversarial_weight": 0.0}),
    "dualgan": (
        "cyclegan",
        {
            "loss": "wasserstein",
            "clip": 0.01,
            "cycle_norm": "l1",
            "optimizer": "rmsprop",
            "identity_weight": 0.0,
            "pool_size": 0,
        },
    ),
    "discogan": (
        "cyclegan",
        {
            "loss": "non_saturating",
            "cycle_norm": "l2",
            "cycle_weight": 1.0,
            "feature_weight": 0.9,
            "identity_weight": 0.0,
            "pool_size": 0,
        },
    ),
}


def method_names() -> tuple[str, ...]:
    """Names of all methods and variants, in the order of this file."""
    return (*REGISTRY, *VARIANTS)


def registered(name: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name in the registry and all given settings of a method or of a variant of one.

    Raises:
        InputError: Unknown name; the nearest known one is suggested.
    """
    if name in VARIANTS:
        method, own = VARIANTS[name]
        return method, {**own, **settings}
    if name in REGISTRY:
        return name, dict(settings)
    known = method_names()
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    question = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"unknown method {name!r}.{question}", f"Known methods: {', '.join(known)}.")


def method_class(name: str) -> Any:
    """The class of a method or variant; imports its module, and so torch.

    Raises:
        InputError: Unknown name; the nearest known one is suggested.
    """
    module, attribute = REGISTRY[registered(name, {})[0]]
    return getattr(import_module(module), attribute)


def build(name: str, config: Mapping[str, Any] | Config) -> nn.Module:
    """A method with freshly initialised weights (from torch's global random generator).

    Args:
        name: Name of a method or variant.
        config: The method's settings; what is left out has the variant's value or the default.

    Raises:
        InputError: Unknown method, or settings that do not fit together.
        pydantic.ValidationError: A setting is unknown or has a wrong type.
    """
    given = config.model_dump() if isinstance(config, Config) else config
    method_name, values = registered(name, given)
    cls = method_class(method_name)
    method: nn.Module = cls(cls.Config.model_validate(values))
    return method
