"""Keys are random, fit into a URL, and are kept as their SHA-256."""

import hashlib
import re

from metalora.serving.keys import key_digest, new_key


def test_a_key_has_256_random_bits():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100 and all(re.fullmatch("ml_[A-Za-z0-9_-]{43}", key) for key in keys)


def test_the_digest_is_the_sha_256_of_whatever_was_sent():
    assert key_digest("ml_é") == hashlib.sha256("ml_é".encode()).digest()
    assert len(key_digest("")) == len(key_digest("\ud800")) == 32
