"""Errors a person can act on: what was given, what was expected, what to do next."""

from __future__ import annotations


class MedgenError(Exception):
    """Base of every error medgen raises on purpose.

    Args:
        message: What was given and what was expected, in one or two sentences.
        hint: What to do next; printed on its own line by the command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class InputError(MedgenError):
    """The input or the usage is wrong; nothing has been written."""

    exit_code = 2


class GeometryError(InputError):
    """Where the voxels are in the world is unknown, contradictory or unsupported."""


class PackageError(InputError):
    """A model package is missing, damaged, tampered with, or from a newer medgen."""


class LeakageError(InputError):
    """A subject would be in both the training and the test part of a split."""
