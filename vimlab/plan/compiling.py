"""Compiling for a topology that is not there: libtpu's environment, its devices, what the compiler says and refuses."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from vimlab.plan.chips import Topology

NO_LIBTPU = "nothing was compiled, because libtpu is not installed (`pip install \"vimlab[tpu]\"`): memory and collectives are estimates"
STACK = "--fibers_default_thread_stack_size=67108864"  # Without it the compiler overflows its stack on some programs.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # A plan touches no accelerator, also where there is one.
    "TPU_SKIP_MDS_QUERY": "1",  # There is no metadata server to ask.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # libtpu cannot read back what it writes there.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}


def prepare_environment(*, fast: bool) -> None:
    """Sets what libtpu and JAX read when they are first loaded; to be called before either is. fast: compile at level O0."""
    os.environ.update(ENVIRONMENT | ({"JAX_OPTIMIZATION_LEVEL": "O0"} if fast else {}))
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    if STACK.partition("=")[0] not in flags:
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {STACK}".strip()


def has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def devices(where: Topology) -> list[Any]:
    """One device for each chip of a TPU topology."""
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if where.name.startswith("v4") else {}
    found = topologies.get_topology_desc(where.name, platform="tpu", **options).devices
    assert len(found) == where.chips, f"{where.name} has {len(found)} devices, not one a chip"
    return list(found)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    Attributes:
      seconds: that it took.
      memory: bytes on a device by name; empty where the program does not fit.
      text: the program (HLO); empty likewise.
      refusal: the compiler's sentence, where it does not fit.
      allocations: the largest buffers that it lists, likewise.
      warnings: of its partitioner.
    """

    seconds: float
    memory: dict[str, int]
    text: str
    refusal: str
    allocations: list[str]
    warnings: list[str]


def compile_step(traced: Any, mesh: Any) -> Compiled:
    """Compiles a traced step. A program that does not fit is a result; every other error of the compiler's is raised."""
    import jax

    start = time.perf_counter()
    with tempfile.TemporaryFile() as file, jax.set_mesh(mesh):
        memory, text, refusal = {}, "", ""
        try:
            with standard_error_to(file):
                compiled = traced.lower().compile()
            analysis = compiled.memory_analysis()
            names = ("argument", "output", "alias", "temp", "generated_code")
            memory = {name: int(getattr(analysis, f"{name}_size_in_bytes")) for name in names} | {"peak": int(analysis.peak_memory_in_bytes)}
            text = compiled.as_text()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                file.seek(0)
                sys.stderr.write(file.read().decode(errors="replace"))
                raise
            refusal = str(error)
        file.seek(0)
        log = file.read().decode(errors="replace")
    seconds = time.perf_counter() - start
    return Compiled(seconds, memory, text, _sentence(refusal), allocations(refusal), remat_warnings(log))


@contextlib.contextmanager
def standard_error_to(file: Any) -> Iterator[None]:
    """Sends what C++ code writes to the process's standard error to a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def remat_warnings(log: str) -> list[str]:
    """The partitioner's lines about arrays that it makes whole on every device to lay them out anew, each once."""
    lines = [line for line in log.splitlines() if re.search(r"[Ii]nvoluntary full rematerialization", line)]
    return list(dict.fromkeys(re.sub(r"^.*?(?=\[?[\w ]*\]? ?[Ii]nvoluntary)", "", line)[:400] for line in lines))


def allocations(refusal: str, count: int = 8) -> list[str]:
    """`size: shape (operation)` of the largest allocations that a refusal lists, where it does."""
    found = []
    for part in re.split(r"\n\s*\d+\. Size: ", refusal)[1 : count + 1]:
        size = part.split("\n", 1)[0].strip()
        shape = re.search(r"Shape: (\S+)", part)
        operation = re.search(r'op_name="([^"]*)"', part)
        found.append(" ".join(filter(None, (size, shape and shape[1], operation and operation[1]))))
    return found


def required(refusal: str) -> float | None:
    """Bytes that a refused program needs, as far as the compiler says."""
    match = re.search(r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT])", refusal)
    return float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1) if match else None


def _sentence(refusal: str) -> str:
    return " ".join(refusal.removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0].split())[:400]
