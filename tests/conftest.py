"""Shared by all tests: eight simulated devices, types and shapes checked in every call, where the real data sets lie."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA runs a program's independent collectives in any order, each on threads of its own: eight devices can exhaust a small pool.
os.environ.setdefault("PJRT_NPROC", "64")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jaxtyping
import pytest

# Before any test imports vimlab: annotations are checked here and cost nothing elsewhere.
jaxtyping.install_import_hook("vimlab", "typecheck.check")

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT / "../shared/data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images for tests; it is beside the project where the project is developed."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets (../shared/data) are not on this machine")
    return SHARED_DATA.resolve()
