"""`vimlab doctor --pod`: whether the processes of a run find each other, their devices, the workdir and the data, each within a time-out."""

import argparse
import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vimlab import config as configs
from vimlab import exits, paths
from vimlab import run as runs
from vimlab.data.pipeline import DataConfig, TrainPipeline, open_train_eval
from vimlab.parallel import exchange, multihost
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import rows_here
from vimlab.run import Run

MARGIN = 5.0  # Seconds that a process which is through with a check waits for the others beyond the time-out.
ROWS = 4  # Of the emoji for each device, where no config names data.

# A check: what each process finds out (JSON values), and the line that all of their findings make. Either raises where something is wrong.
Check = tuple[str, Callable[[], Any], Callable[[list[Any]], str]]


def check_pod(args: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> int:
    """Runs the checks on all processes; process 0 prints a line for each. Returns 0, or 1 where one failed.

    Args:
      args: `workdir`, `config`, `timeout` in seconds, and the flags of `cluster.add_flags`.
      overrides: of the config.
    """
    with multihost.joined(args):
        print_first(f"{'processes':11}{exchange.count()} came")
        token = exchange.first(lambda: f"{os.getpid():x}{time.time_ns():x}")
        workdir = paths.place(args.workdir)
        files = [workdir / f".pod_check_{token}_{i}" for i in range(exchange.count())]
        mine = files[exchange.index()]
        checks: list[Check] = [
            ("devices", count_devices, sum_up_devices),
            ("all-reduce", all_reduce, sum_up_reduction),
            ("writing", lambda: write(mine), lambda found: f"every process wrote to {workdir}"),
            ("reading", lambda: read(files, args.timeout), lambda found: f"every process read what the others wrote, after {max(found):.1f} s"),
            ("data", lambda: take_batch(args, overrides), sum_up_batches),
        ]
        try:
            failed = sum(not run_check(*check, args.timeout) for check in checks)
        finally:
            with contextlib.suppress(OSError):
                mine.unlink(missing_ok=True)
        print_first("all is well" if not failed else f"{failed} of {len(checks)} checks failed")
        return exits.FAILED if failed else exits.FINISHED


def print_first(text: str) -> None:
    """Prints on process 0."""
    if exchange.index() == 0:
        print(text, flush=True)


def run_check(name: str, find: Callable[[], Any], sum_up: Callable[[list[Any]], str], timeout: float) -> bool:
    """Runs one check on this process, tells the others, and prints what they found together. Returns whether it went well.

    A check that does not end cannot be broken off, and what it waits for would stop the checks after it too: then all processes end.
    """
    mine = within(find, timeout)
    told = exchange.gather(mine, f"the check of {name}", timeout + MARGIN)
    wrong = [f"process {i}: {t['error']}" for i, t in enumerate(told) if "error" in t]
    if not wrong:
        try:
            line = sum_up([t["found"] for t in told])
        except RuntimeError as error:
            wrong = [str(error)]
    print_first(f"{name:11}" + (f"FAILED: {'; '.join(wrong)}" if wrong else line))
    if any(t.get("stuck") for t in told):
        print_first("the checks end here, since this one cannot be broken off")
        sys.stdout.flush()
        time.sleep(0 if exchange.index() else 1)  # Process 0 holds what the others read their last words from.
        os._exit(exits.FAILED)
    return not wrong


def within(find: Callable[[], Any], timeout: float) -> dict[str, Any]:
    """{"found": what `find` returns}, or {"error": a sentence}, with "stuck" where it has not ended in time."""
    result: dict[str, Any] = {}

    def work():
        try:
            result["found"] = find()
        except Exception as error:  # Whatever is broken, the other checks still run.
            result["error"] = " ".join(str(error).split()) or type(error).__name__

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    return {"error": f"did not end within {timeout:g} s", "stuck": True} if thread.is_alive() else result


def count_devices() -> dict[str, Any]:
    """This process's devices, and how many it sees in all."""
    return {"here": jax.local_device_count(), "all": jax.device_count(), "kind": jax.devices()[0].device_kind}


def sum_up_devices(found: list[dict[str, Any]]) -> str:
    counts, kinds = [f["here"] for f in found], {f["kind"] for f in found}
    if any(f["all"] != sum(counts) for f in found):
        raise RuntimeError(f"the processes have {counts} devices, which is {sum(counts)}, but see {[f['all'] for f in found]}")
    if len(kinds) > 1 or len(set(counts)) > 1:
        each = ", ".join(f"{f['here']} x {f['kind']}" for f in found)
        raise RuntimeError(f"the processes' devices differ: {each}")
    return f"{counts[0]} x {kinds.pop()} on each of {len(found)} {'process' if len(found) == 1 else 'processes'}, {sum(counts)} in all"


def all_reduce() -> dict[str, Any]:
    """The sum over all devices of their numbers 1 to N, and the seconds of the second one."""
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    numbers = jnp.arange(1, jax.device_count() + 1, dtype=jnp.float32)
    spread = jax.make_array_from_callback(numbers.shape, NamedSharding(mesh, PartitionSpec("all")), lambda index: np.asarray(numbers)[index])
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    total(spread).block_until_ready()
    begin = time.perf_counter()
    value = float(total(spread).block_until_ready())
    return {"sum": value, "devices": jax.device_count(), "seconds": time.perf_counter() - begin}


def sum_up_reduction(found: list[dict[str, Any]]) -> str:
    n = found[0]["devices"]
    right = n * (n + 1) / 2
    for i, f in enumerate(found):
        if f["sum"] != right:
            raise RuntimeError(f"process {i} found {f['sum']:g} as the sum of 1 to {n} over all devices, which is {right:g}")
    return f"1 + … + {n} over all devices is {right:g} on every process, in {max(f['seconds'] for f in found) * 1e3:.1f} ms"


def write(file: paths.Path) -> None:
    """Writes this process's file."""
    paths.make_folder(file.parent)
    file.write_text(file.name)


def read(files: Sequence[paths.Path], timeout: float) -> float:
    """Reads the files of all processes. Returns the seconds until the last was there: shared file systems show new files late."""
    begin, left = time.monotonic(), list(files)
    while left:
        left = [file for file in left if not (file.exists() and file.read_text() == file.name)]
        if left and time.monotonic() - begin > timeout / 2:
            missing = ", ".join(file.name.rpartition("_")[2] for file in left)
            raise RuntimeError(f"what process {missing} wrote to {files[0].parent} is not to be seen here; choose a --workdir that all processes share")
        time.sleep(0.1 if left else 0)
    return time.monotonic() - begin


def take_batch(args: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The first training batch's rows of this process: of the config's data, or of the emoji."""
    begin = time.perf_counter()
    if args.config is not None:
        config = runs.resolve(configs.load(args.config), overrides)
        run = Run(config.within(paths.place(args.workdir)))
        source, mesh, data, size, batch, text = run.train_source, run.mesh, config.data, run.task.image_size, config.batch_size, run.task.text
    else:
        data, mesh, size, batch, text = DataConfig(train="emoji#train"), make_mesh(MeshConfig()), 32, ROWS * jax.device_count(), None
        source, _ = open_train_eval(data)
    rows = rows_here(mesh, batch)
    pipeline = TrainPipeline(source, image_size=size, crop=data.crop, batch_size=batch, seed=0, rows=rows, threads=data.threads, text=text,
                             max_bad=data.max_bad, views=data.views)
    shapes = {name: list(x.shape) for name, x in pipeline.batch(0).items()}
    return {"rows": rows, "batch": batch, "shapes": shapes, "data": source.info.name, "seconds": time.perf_counter() - begin}


def sum_up_batches(found: list[dict[str, Any]]) -> str:
    batch, held = found[0]["batch"], Counter(row for f in found for row in f["rows"])
    if missing := sorted(set(range(batch)) - set(held)):
        raise RuntimeError(f"{len(missing)} of the {batch} rows of a batch are on no process")
    if len({f["data"] for f in found}) > 1:
        raise RuntimeError(f"the processes read different data: {', '.join(sorted({f['data'] for f in found}))}")
    name = "image" if "image" in found[0]["shapes"] else "tokens"
    shared = "" if max(held.values()) == 1 else f" (each row on {max(held.values())} processes)"
    return (f"{found[0]['data']}: {name} {tuple(found[0]['shapes'][name])} on each process, {batch} rows in all{shared}, "
            f"in {max(f['seconds'] for f in found):.1f} s")
