"""Named streams of randomness: a key is a pure function of (root key, name, step), so none is ever stored."""

import zlib

import jax


def stream(root: jax.Array, name: str, step: jax.Array | int = 0) -> jax.Array:
    """The key of stream `name` at `step`. root: typed PRNG key []; step: i32[]."""
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode()) & 0x7FFFFFFF), step)
