"""Shared by all tests: eight simulated devices, types and shapes checked in every call, one store of compiled programs,
where the real data sets lie."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA runs a program's independent collectives in any order, each on threads of its own: eight devices can exhaust a small pool.
os.environ.setdefault("PJRT_NPROC", "64")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one process has compiled, the others find: pytest's workers and what tests start. Gone when the first process ends.
    COMPILED = tempfile.TemporaryDirectory(prefix="vimlab_compiled_")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": COMPILED.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }  # fmt: skip

import jax
import jaxtyping
import pytest
from quick import OLD_EMITTERS, flags

# Read when the first program is compiled.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {flags(OLD_EMITTERS)}"

# Before any test imports vimlab: annotations are checked here and cost nothing elsewhere.
jaxtyping.install_import_hook("vimlab", "typecheck.check")

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT / "../shared/data"
# Half a minute of CPU or more each. They come first, the longest before the others: begun last, one alone would keep a core idle.
LONG = (
    "evals/test_invariance.py", "test_train.py", "test_processes.py", "tasks/test_tokenizer_task.py", "tasks/test_generator_task.py",
    "test_sample.py", "sampling/test_decode.py", "test_train_generator.py", "parallel/test_pipeline_stages.py", "generators/test_generator.py",
    "sweep/test_real_sweep.py", "launch/test_training.py", "evals/test_distribution.py", "generators/test_incremental.py", "test_paths.py",
    "test_checkpoint.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {ROOT / "tests" / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(LONG)))


@pytest.fixture(scope="module")
def compiled_quickly():
    """For files that compile more than they run: programs are not optimised, here and in processes started from here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images for tests; it is beside the project where the project is developed."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets (../shared/data) are not on this machine")
    return SHARED_DATA.resolve()
