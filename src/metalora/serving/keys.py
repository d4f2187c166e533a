"""API keys: what a tenant shows, and what the store keeps of it."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "ml_"  # tools that look for secrets in source code find a key by it
KEY_BYTES = 32


def new_key() -> str:
    """Return a new random key: "ml_" and 43 characters that a URL may hold, 256 bits.

    Example:
        >>> len(new_key())
        46
    """
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def key_digest(key: str) -> bytes:
    """Return the SHA-256 of a key, which the store keeps instead of the key.

    A slow hash would add nothing: unlike a password, a key of 256 random bits cannot be guessed.

    Args:
        key: A key, or whatever a client sent instead of one.

    Example:
        >>> key_digest("ml_example").hex()[:8]
        'ead277ee'
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
