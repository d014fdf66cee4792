"""Times the tokenizer's training and code search against plain torch: same weights, outputs compared, turns taken.

    python tools/bench/tokenizer.py [--torch-python PATH] [--json FILE] [--only PATTERN] [--seconds S] [--core N]

torch lives in its own environment: python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 numpy

Both sides run as child processes with huge-page allocation and as many threads as there are cores. They take turns in the
order A B C, C B A, …; figures are wall clock of whole steps, and a ratio is the median over rounds of torch's time by
ours, with a bootstrap 95% interval. On a machine that is busy with other work use --core: one pinned core, one thread,
CPU time. Every cell is printed, whoever wins.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import platform
import sys
import tempfile
import time

import numpy as np
from cells import CELLS, TORCH_VARIANTS
from pair import Child, differences, idle_share, machine_time, paired_ratio

HERE = pathlib.Path(__file__).resolve().parent
TOLERANCE = 1e-4
MIN_ROUNDS, MAX_ROUNDS = 4, 60
HOW_TO_GET_TORCH = "python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 numpy"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch-python", default=os.environ.get("TORCH_PYTHON", str(HERE.parents[1] / ".venv-torch/bin/python"))
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write every figure to this file")
    parser.add_argument("--only", default="*", help="cells to run, a pattern")
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring per cell")
    parser.add_argument("--core", type=int, help="pin both sides to one core and judge by CPU time")
    args = parser.parse_args()
    if not pathlib.Path(args.torch_python).exists():
        print(
            f"there is no torch at {args.torch_python}; make it with: {HOW_TO_GET_TORCH} (or give --torch-python)",
            file=sys.stderr,
        )
        return 2
    started = time.time()
    names = [name for name in CELLS if fnmatch.fnmatch(name, args.only)]
    report = {"environment": environment(args), "cells": {}}
    print_environment(report["environment"])
    children = start(args)
    try:
        for name in names:
            report["cells"][name] = cell = measure(name, CELLS[name], children, args)
            print_cell(name, cell)
    finally:
        for child in children.values():
            child.close()
    report["environment"] |= {
        "idle_after": idle_share(),
        "load_after": os.getloadavg()[0],
        "minutes": (time.time() - started) / 60,
    }
    print_summary(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def start(args: argparse.Namespace) -> dict[str, Child]:
    """The two sides, with the same allocator and the same number of threads."""
    threads = 1 if args.core is not None else os.cpu_count()
    env = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OMP_NUM_THREADS": str(threads), "BENCH_THREADS": str(threads),
        "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    if args.core is not None:
        env["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    return {
        "jax": Child([sys.executable, str(HERE / "jax_side.py")], env, args.core),
        "torch": Child([args.torch_python, str(HERE / "torch_side.py")], env, args.core),
    }


def measure(name: str, cell: dict, children: dict[str, Child], args: argparse.Namespace) -> dict:
    """Compares outputs, then times all variants of a cell in turns."""
    variants = [("jax", "jax")] + [("torch", v) for v in TORCH_VARIANTS[cell["kind"]]]
    result = {
        "what": cell["what"],
        "target": cell["target"],
        "against": cell.get("against"),
        "first_seconds": {},
        "differences": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        arrays, path = f"{folder}/arrays.npz", pathlib.Path(folder)
        children["jax"].ask(do="common", cell=cell, out=arrays)
        for side, variant in variants:
            children[side].ask(do="make", cell=cell, variant=variant, arrays=arrays)
            for phase in cell["phases"]:
                out = path / f"{variant}_{phase}.npz"
                print(f"{name}: first step of {side} {variant}, {phase} …", file=sys.stderr, flush=True)
                answer = children[side].ask(do="first", variant=variant, phase=phase, out=str(out))
                seconds = result["first_seconds"]
                seconds[variant] = seconds.get(variant, 0.0) + answer["seconds"]
                if variant != "jax":
                    found = differences(path / f"jax_{phase}.npz", out)
                    result["differences"] |= {f"{variant}, {phase}, {k}": v for k, v in found.items()}
    result["equal"] = max(result["differences"].values()) < TOLERANCE
    result |= take_turns(cell, variants, children, "cpu" if args.core is not None else "wall", args.seconds)
    for child in children.values():
        child.ask(do="drop")
    return result


def take_turns(cell: dict, variants: list[tuple[str, str]], children: dict[str, Child], clock: str, seconds: float) -> dict:
    """Rounds of all variants, forwards and backwards, until the time is up."""
    times: dict[str, list[float]] = {variant: [] for _, variant in variants}
    cpu: dict[str, list[float]] = {variant: [] for _, variant in variants}
    # Two steps a turn, the faster counts: the first one of a turn finds the caches of the other side.
    turn = lambda side, variant, phase: children[side].ask(do="time", variant=variant, phase=phase, repeats=2)
    for side, variant in variants:
        for phase in cell["phases"]:
            turn(side, variant, phase)
    start, before, used, rounds = time.perf_counter(), machine_time(), 0.0, 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() - start < seconds):
        for side, variant in variants[:: 1 if rounds % 2 == 0 else -1]:
            total = {"wall": 0.0, "cpu": 0.0}
            for phase, share in cell["phases"].items():
                answer = turn(side, variant, phase)
                used += sum(answer["cpu"])
                for key in total:
                    total[key] += share * min(answer[key])
            times[variant].append(total[clock])
            cpu[variant].append(total["cpu"])
        rounds += 1
    span = time.perf_counter() - start
    busy, _, stolen = (b - a for a, b in zip(before, machine_time(), strict=True))
    ours = np.array(times["jax"])
    fastest = min((v for _, v in variants if v != "jax"), key=lambda v: np.median(times[v]))
    return {
        "clock": clock,
        "rounds": rounds,
        "median_ms": {v: 1e3 * float(np.median(t)) for v, t in times.items()},
        "min_ms": {v: 1e3 * float(np.min(t)) for v, t in times.items()},
        "median_cpu_ms": {v: 1e3 * float(np.median(t)) for v, t in cpu.items()},
        "ratios": {v: paired_ratio(np.array(times[v]), ours) for v in times if v != "jax"},
        "fastest_torch": fastest,
        # What others took of the machine meanwhile, of all its cores.
        "others_share": max(0.0, (busy + stolen - used) / (span * os.cpu_count())),
    }


def environment(args: argparse.Namespace) -> dict:
    """What the figures depend on."""
    cpu = [
        line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    version = lambda python, package: (
        os.popen(f"{python} -c 'import importlib.metadata as m; print(m.version(\"{package}\"))'").read().strip()
    )
    return {
        "cpu": f"{os.cpu_count()} x {cpu[0] if cpu else platform.machine()}",
        "python": platform.python_version(),
        "jax": version(sys.executable, "jax"),
        "torch": version(args.torch_python, "torch"),
        "allocator": "glibc.malloc.hugetlb=1 on both sides",
        "dtype": "float32",
        "threads": 1 if args.core is not None else os.cpu_count(),
        "idle_before": idle_share(),
        "load_before": os.getloadavg()[0],
    }


def print_environment(found: dict) -> None:
    print(
        f"{found['cpu']}, {found['threads']} thread(s); python {found['python']}, jax {found['jax']}, torch {found['torch']}, "
        f"{found['dtype']}, {found['allocator']}; idle {found['idle_before']:.0%}, load {found['load_before']:.1f}"
    )
    if found["idle_before"] < 0.85:
        print("warning: the machine is busy; wall-clock figures mean little now (--core N judges by CPU time)")


def print_cell(name: str, cell: dict) -> None:
    worst = max(cell["differences"], key=cell["differences"].get)
    print(f"\n{name}: {cell['what']}")
    print(
        f"  outputs: largest relative L2 difference {cell['differences'][worst]:.1e} ({worst})"
        + ("" if cell["equal"] else f": NOT EQUAL to {TOLERANCE:g}, the times below compare different things")
    )
    for variant, median in cell["median_ms"].items():
        ratio = "" if variant == "jax" else "   torch/jax {:.2f} [{:.2f}, {:.2f}]".format(*cell["ratios"][variant])
        label = "vimlab" if variant == "jax" else f"torch {variant}"
        print(
            f"  {label:<15} median {median:9.1f} ms   min {cell['min_ms'][variant]:9.1f}   CPU {cell['median_cpu_ms'][variant]:9.1f}"
            f"   first {cell['first_seconds'][variant]:5.1f} s{ratio}"
        )
    print(f"  {cell['rounds']} rounds, {cell['clock']} time; others used {cell['others_share']:.0%} of the machine", flush=True)


def print_summary(report: dict) -> None:
    after = report["environment"]
    print("\n| cell | vimlab | torch | ratio | target | |\n| --- | --- | --- | --- | --- | --- |")
    for cell in report["cells"].values():
        for peer in dict.fromkeys((cell["against"] or cell["fastest_torch"], cell["fastest_torch"])):
            ratio, low, high = cell["ratios"][peer]
            aimed = peer == (cell["against"] or peer)
            verdict = (
                "unequal outputs"
                if not cell["equal"]
                else ""
                if not aimed
                else "reached"
                if ratio >= cell["target"]
                else "missed"
            )
            print(
                f"| {cell['what']} | {cell['median_ms']['jax']:.1f} ms | {cell['median_ms'][peer]:.1f} ms ({peer}) | "
                f"{ratio:.2f} [{low:.2f}, {high:.2f}] | {cell['target'] if aimed else ''} | {verdict} |"
            )
    print(f"\n{after['minutes']:.1f} minutes; idle after {after['idle_after']:.0%}, load {after['load_after']:.1f}")


if __name__ == "__main__":
    sys.exit(main())
