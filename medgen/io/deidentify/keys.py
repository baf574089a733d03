"""What depends on the secret key: new UIDs, pseudonyms, shifts of dates, names of files.

All are cut from HMAC-SHA256 (RFC 2104) of the old value. The same key gives the same result in
every run, so that a later delivery fits to an earlier one; without the key there is no way back,
not even by trying all patient numbers. The key is never stored, printed or serialised.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from medgen.errors import InputError

KEY_BYTES = 32
_MAX_KEY_FILE = 4096
# Between one and about eleven years back, so a shifted date is never the old one.
_SHIFT_DAYS = (366, 4018)


class KeyedMap:
    """Old values to new ones.

    Args:
        key: At least 16 bytes, better :data:`KEY_BYTES`.

    Raises:
        InputError: The key is too short to be a secret.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise InputError(
                f"the key has {len(key)} bytes; at least 16 are needed",
                "Make one with --new-key.",
            )
        self._key = key

    def __repr__(self) -> str:
        return "KeyedMap(key hidden)"

    def _digest(self, kind: str, text: str) -> bytes:
        data = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, data, hashlib.sha256)

    def uid(self, old: str) -> str:
        """A UID below 2.25 (PS3.5 B.2): a version 8 UUID as one decimal number."""
        number = int.from_bytes(self._digest("uid", old)[:16], "big")
        number = number & ~(0xF << 76) | 8 << 76  # version
        number = number & ~(0x3 << 62) | 2 << 62  # variant
        return f"2.25.{number}"

    def pseudonym(self, identity: str) -> str:
        """A name for a patient, such as ``ANON-0123456789AB``; 48 bits of the hash."""
        return f"ANON-{self._digest('patient', identity)[:6].hex().upper()}"

    def shift_days(self, identity: str) -> int:
        """By how many days to move a patient's dates; negative, at least one year."""
        low, high = _SHIFT_DAYS
        number = int.from_bytes(self._digest("dates", identity)[:8], "big")
        return -(low + number % (high - low))

    def label(self, kind: str, text: str, digits: int = 8) -> str:
        """Hexadecimal digits for the name of a file or folder."""
        return self._digest(kind, text)[:16].hex()[:digits]


def random_key() -> bytes:
    """A key for one run."""
    return secrets.token_bytes(KEY_BYTES)


def new_key(path: Path) -> bytes:
    """Make a key and write it to a new file that only its owner may read.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    key = random_key()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(
            "the key file exists already", "Use it with --key-file, or choose another name."
        ) from None
    except OSError as error:
        raise InputError(
            f"the key file cannot be written: {error.strerror}", "Choose another place for it."
        ) from None
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def read_key(path: Path) -> bytes:
    """Read a key that :func:`new_key` wrote.

    Raises:
        InputError: The file is missing, not a key, or readable by others than its owner.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE)
    except OSError as error:
        raise InputError(
            f"the key file cannot be read: {error.strerror}", "Make one with --new-key."
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise InputError(
            "the key file can be read by others: whoever has it can link pseudonyms to patients",
            "Protect it with `chmod 600`; if others may have read it, make a new one.",
        )
    text = data.decode("ascii", "replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(
            f"the key file does not hold a key: {2 * KEY_BYTES} hexadecimal digits are expected",
            "Make one with --new-key.",
        )
    return key
