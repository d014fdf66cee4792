"""Compiling for a topology that is not there: libtpu's environment, its devices, what the compiler says and refuses."""

import atexit
import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import time
from typing import Any

from vimlab.config import UserError
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


def prepare_environment() -> None:
    """Sets what libtpu and JAX read when they are first loaded; to be called before either is."""
    folder = tempfile.mkdtemp(prefix="vimlab_plan_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(ENVIRONMENT | {"TPU_LOG_DIR": folder})  # The partitioner warns nowhere but in libtpu's log.
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    if STACK.partition("=")[0] not in flags:
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {STACK}".strip()


def has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def devices(where: Topology) -> list[Any]:
    """One device for each chip of a TPU topology. Raises UserError where libtpu counts otherwise."""
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if where.name.startswith("v4") else {}
    found = topologies.get_topology_desc(where.name, platform="tpu", **options).devices
    if len(found) != where.chips:
        raise UserError(f"this libtpu makes {len(found)} devices of {where.name}, not one a chip; take another version, or --no-compile")
    return list(found)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made.

    Attributes:
      seconds: that it took.
      memory: bytes on a device: `arguments`, `outputs` that share no memory with them, `temporaries`, `program` (its code, only known
        of a full compilation), and `total`; empty where the program does not fit.
      text: the program (HLO); empty likewise.
      refusal: the compiler's sentence, where it does not fit.
      largest: buffers; see `largest`.
      warnings: of its partitioner.
    """

    seconds: float
    memory: dict[str, int]
    text: str
    refusal: str
    largest: list[str]
    warnings: list[str]


def compile_step(traced: Any, mesh: Any, *, full: bool = False) -> Compiled:
    """Compiles a traced step until each buffer has its place in memory, or in full. A program that does not fit is a result.

    Everything that a plan tells is decided by then: layouts, fusions, collectives, memory. What follows is machine code, which is
    nearly all of the compiler's time (of a ViT-VQGAN's step 380 of 390 s), so it is left to go on by itself; see `leave`.

    Raises:
      jax.errors.JaxRuntimeError: any other error of the compiler's.
      UserError: a libtpu that does not tell what a plan needs.
    """
    import jax

    start = time.perf_counter()
    folder = pathlib.Path(os.environ["TPU_LOG_DIR"])
    with jax.set_mesh(mesh):
        compilation = Compilation(traced.lower(), pathlib.Path(tempfile.mkdtemp(dir=folder)))
    compilation.wait(full)
    error = compilation.error
    refusal = str(error) if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error) else ""
    if error and not refusal:
        raise error
    memory, text = ({}, "") if refusal else compilation.result(full)
    read = lambda names: "".join(file.read_text(errors="replace") for file in sorted(folder.glob(names)))
    buffers, warnings = largest(read("*/*-memory-usage-report.txt")), remat_warnings(read("*.WARNING.*"))
    return Compiled(time.perf_counter() - start, memory, text, _sentence(refusal), buffers, warnings)


class Compilation:
    """The compiler at work in a thread of its own, telling in a folder how far it is. It cannot be stopped but with its process."""

    started: list[threading.Thread] = []

    def __init__(self, lowered: Any, folder: pathlib.Path) -> None:
        self._folder, self._lowered, self._executable, self.error = folder, lowered, None, None
        self._thread = threading.Thread(target=self._compile, daemon=True)
        self.started.append(self._thread)
        self._thread.start()

    def _compile(self) -> None:
        try:
            self._executable = self._lowered.compile(compiler_options={"xla_dump_to": str(self._folder), "xla_dump_hlo_as_text": True})
        except Exception as error:  # Raised where it is waited for.
            self.error = error

    def wait(self, full: bool) -> None:
        """Until it is done, or, unless in full, until buffers are assigned."""
        while self._thread.is_alive() and (full or not any(self._folder.glob("*.after_optimizations_after_buffer_assignment.txt"))):
            self._thread.join(0.1)

    def result(self, full: bool) -> tuple[dict[str, int], str]:
        """`Compiled.memory` and `Compiled.text`. Raises UserError where libtpu does not write them."""
        names = ("*.after_optimizations-buffer-assignment.txt", "*.after_optimizations.txt")
        files = [file for name in names for file in self._folder.glob(name)]
        if len(files) != 2:
            raise UserError("this libtpu does not write down which buffers it assigned; take another version, or --no-compile")
        assignment, text = (file.read_text() for file in files)
        memory = assigned(assignment)
        if full:
            memory["program"] = int(self._executable.memory_analysis().generated_code_size_in_bytes)
        return memory | {"total": sum(memory.values())}, text


def leave(code: int) -> int:
    """The exit code of this process, which ends here where the compiler would keep it alive."""
    if any(thread.is_alive() for thread in Compilation.started):
        sys.stdout.flush()
        sys.stderr.flush()
        shutil.rmtree(os.environ["TPU_LOG_DIR"], ignore_errors=True)
        os._exit(code)
    return code


def assigned(text: str) -> dict[str, int]:
    """Bytes of a buffer assignment in main memory: of `arguments`, of `outputs` that are not among them, and of all others, `temporaries`."""
    found = {"arguments": 0, "outputs": 0, "temporaries": 0}
    for size, what in re.findall(r"^allocation \d+: size (\d+), (.*)$", text, re.MULTILINE):
        if not re.search(r"\bcolor [1-9]", what):  # Other colours are memories on the chip.
            kind = "arguments" if "parameter" in what else "outputs" if "maybe-live-out" in what or "output shape" in what else "temporaries"
            found[kind] += int(size)
    return found


def remat_warnings(log: str) -> list[str]:
    """The partitioner's lines about arrays that it makes whole on every device to lay them out anew, each once.

    Those about a `fake_parameter` are of layouts that it only weighs.
    """
    lines = [line for line in log.splitlines() if re.search(r"[Ii]nvoluntary full rematerialization", line) and "%fake_parameter" not in line]
    return list(dict.fromkeys(re.sub(r"^.*?(?=\[?[\w ]*\]? ?[Ii]nvoluntary)", "", line)[:400] for line in lines))


def largest(report: str, count: int = 8) -> list[str]:
    """`size shapes` of the buffers in main memory that are the largest at the worst moment; a buffer may hold several arrays in turn."""
    found = []
    for row in report.partition("------\n")[2].partition("\n\n")[0].splitlines()[:count]:
        _, size, *_, shapes = (cell.strip() for cell in row.split(";"))
        number, unit = re.fullmatch(r"([\d.]+)(.*)", size).groups()
        arrays = re.findall(r"[a-z]\w*\[[\d,]*\]", shapes)
        found.append(f"{float(number):.2f} {unit} {', '.join(arrays[:3])}")
    return found


def required(refusal: str) -> float | None:
    """Bytes that a refused program needs, as far as the compiler says."""
    match = re.search(r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT])", refusal)
    return float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1) if match else None


def _sentence(refusal: str) -> str:
    return " ".join(refusal.removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0].split())[:400]
