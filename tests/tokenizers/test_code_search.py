"""Nearest codes against all distances in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import spec
from vimlab.tokenizers.code_search import CPU_ROWS, nearest_codes

search = jax.jit(nearest_codes)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def brute_force(latents, codebook):
    return ((latents[:, :, None].astype(np.float64) - codebook) ** 2).sum(-1).argmin(-1)


@pytest.mark.parametrize("b, n, k, c", [(2, 100, 50, 8), (1, 1, 1, 3), (3, 37, 257, 32), (CPU_ROWS + 6, 3, 20, 4), (1, 2 * CPU_ROWS, 64, 5)])
def test_the_nearest_by_euclidean_distance(b, n, k, c):
    """Sizes that divide the blocks of the search, and sizes that do not; codes of unequal lengths."""
    latents, codebook = normal(0, b, n, c), normal(1, k, c) * np.linspace(0.1, 3, k, dtype=np.float32)[:, None]
    found = search(latents, codebook)
    assert found.dtype == jnp.int32 and found.shape == (b, n)
    np.testing.assert_array_equal(found, brute_force(latents, codebook))


def test_the_longest_code_does_not_win_by_its_length():
    """By the inner product alone the second would."""
    assert search(jnp.array([[[1.0, 0.0]]]), jnp.array([[0.9, 0.0], [10.0, 0.0]]))[0, 0] == 0


def test_the_lowest_index_wins_a_tie():
    codebook = normal(2, 40, 8)
    codebook[[3, 17, 39]] = codebook[29]
    codebook[[5, 6]] = codebook[30]
    latents = np.stack([codebook[29], codebook[30], codebook[31]])[None]
    np.testing.assert_array_equal(search(latents, codebook), [[3, 5, 31]])


def test_near_ties_are_settled_in_f32():
    """In bf16 the two scores would be equal."""
    codebook = np.array([[1.0, 0.0], [1.0, 1e-3]], np.float32)
    np.testing.assert_array_equal(search(np.array([[[1.0, 0.0], [1.0, 1e-3]]], np.float32), codebook), [[0, 1]])


def test_nan_spoils_only_its_own_row_and_gives_a_valid_index():
    latents, codebook = normal(3, 2, 9, 4), normal(4, 30, 4)
    expected = brute_force(latents, codebook)
    latents[1, 4, 2] = np.nan
    found = np.asarray(search(latents, codebook))
    assert 0 <= found[1, 4] < 30
    expected[1, 4] = found[1, 4]
    np.testing.assert_array_equal(found, expected)


def test_no_scores_of_the_whole_batch_are_held():
    """4096 latents against 8192 codes are 134 MB of scores; the search holds a few blocks of 64 x 8192."""
    latents, codebook = jax.ShapeDtypeStruct((4, 1024, 32), jnp.float32), jax.ShapeDtypeStruct((8192, 32), jnp.float32)
    memory = search.lower(latents, codebook).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 20e6


def test_sharded_batches_stay_sharded():
    latents, codebook = normal(5, 8, 20, 4), normal(6, 33, 4)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    layout = NamedSharding(mesh, spec(("batch", None, None)))
    with jax.set_mesh(mesh):
        compiled = jax.jit(nearest_codes, in_shardings=(layout, NamedSharding(mesh, spec(())))).lower(latents, codebook).compile()
        found = compiled(jax.device_put(latents, layout), jax.device_put(codebook, NamedSharding(mesh, spec(()))))
    np.testing.assert_array_equal(found, brute_force(latents, codebook))
    assert found.sharding.shard_shape(found.shape) == (1, 20)
    assert "all-gather" not in compiled.as_text()
