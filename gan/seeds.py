"""A seed for every random draw of a run, from (seed, stream, index); imports no torch."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, stream: str, index: int) -> int:
    """A 63-bit seed for draw number `index` of `stream`; streams and indices are independent of
    each other.
    """
    name = f"{seed}/{stream}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
