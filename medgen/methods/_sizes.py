"""What methods ask of the sizes of their images."""

from medgen.networks.sizes import require_multiples

__all__ = ["require_multiples"]
