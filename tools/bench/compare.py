"""What the benchmarks share: cells measured by two children that take turns, outputs compared first.

A cell is a plain dictionary that both sides read:

  what, kind    a line about it, and what its child makes of it.
  phases        {name: share of the steps}; the weighted mean of their times is reported.
  peers         {variant: side} of what ours, the side "jax", is compared to.
  apart         peers whose outputs are not ours and are not compared.
  targets       {peer: ratio to reach, or None}; "torch" is the fastest torch variant that is not apart.
  gradients     how far gradients may differ, relative L2; as far as all else by default.
  extrapolated  {variant: (positions timed, positions meant)} of what would take too long whole.
  repeats       steps a turn, the fastest counts; 1 also leaves out the warm-up turn. rounds: the fewest.
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
from pair import Child, differences, idle_share, machine_time, paired_ratio
from tables import print_cell, print_environment, print_summary

HERE = pathlib.Path(__file__).resolve().parent
TOLERANCE = 1e-4
# Of greedy ids: two programs that round differently part where two logits tie, and the rest of that row with them.
ID_TOLERANCE = 0.05
MIN_ROUNDS, MAX_ROUNDS = 4, 60
HOW_TO_GET_TORCH = "python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 numpy 'transformers>=5,<6'"


def main(about: str, cells: dict[str, dict], scripts: dict[str, str], packages: list[str], seconds: float) -> int:
    """Runs a benchmark from the command line.

    Args:
      about: a line for --help.
      cells: by name.
      scripts: {side: file in this folder that serves}, "jax" and "torch".
      packages: of torch's environment, whose versions are printed.
      seconds: of measuring per cell, by default.
    """
    args = arguments(about, seconds)
    chosen = {name: cell for name, cell in cells.items() if fnmatch.fnmatch(name, args.only)}
    sides = {"jax"}.union(*(cell["peers"].values() for cell in chosen.values()))
    if "torch" in sides and not pathlib.Path(args.torch_python).exists():
        print(
            f"there is no torch at {args.torch_python}; make it with: {HOW_TO_GET_TORCH} (or give --torch-python)",
            file=sys.stderr,
        )
        return 2
    started = time.time()
    report = {"environment": environment(args, packages if "torch" in sides else []), "cells": {}}
    print_environment(report["environment"])
    children = start(args, {side: scripts[side] for side in sorted(sides)})
    try:
        for name, cell in chosen.items():
            report["cells"][name] = found = measure(name, cell, children, args)
            print_cell(name, found)
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


def arguments(about: str, seconds: float) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--torch-python", default=os.environ.get("TORCH_PYTHON", str(HERE.parents[1] / ".venv-torch/bin/python"))
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write every figure to this file")
    parser.add_argument("--only", default="*", help="cells to run, a pattern")
    parser.add_argument("--seconds", type=float, default=seconds, help="of measuring per cell")
    parser.add_argument("--core", type=int, help="pin both sides to one core and judge by CPU time")
    return parser.parse_args()


def start(args: argparse.Namespace, scripts: dict[str, str]) -> dict[str, Child]:
    """The two sides, with the same allocator and the same number of threads."""
    threads = 1 if args.core is not None else os.cpu_count()
    env = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "OMP_NUM_THREADS": str(threads), "BENCH_THREADS": str(threads),
        "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    if args.core is not None:
        env["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    pythons = {"jax": sys.executable, "torch": args.torch_python}
    return {side: Child([pythons[side], str(HERE / script)], env, args.core) for side, script in scripts.items()}


def measure(name: str, cell: dict, children: dict[str, Child], args: argparse.Namespace) -> dict:
    """Compares outputs, then times all variants of a cell in turns."""
    variants = [("jax", "jax"), *((side, variant) for variant, side in cell["peers"].items())]
    result = {key: cell.get(key, {}) for key in ("what", "peers", "targets", "extrapolated")}
    result |= {"apart": list(cell.get("apart", ())), "first_seconds": {}, "differences": {}}
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
                if variant != "jax" and variant not in result["apart"]:
                    found = differences(path / f"jax_{phase}.npz", out)
                    result["differences"] |= {f"{variant}, {phase}, {k}": v for k, v in found.items()}
    result["equal"] = all(v < tolerance(cell, k) for k, v in result["differences"].items())
    result |= take_turns(cell, variants, children, "cpu" if args.core is not None else "wall", args.seconds)
    for child in children.values():
        child.ask(do="drop")
    return result


def tolerance(cell: dict, name: str) -> float:
    """How far the outputs of this name may differ."""
    if name.endswith("ids"):
        return ID_TOLERANCE
    return cell.get("gradients", TOLERANCE) if "gradients" in name else TOLERANCE


def take_turns(cell: dict, variants: list[tuple[str, str]], children: dict[str, Child], clock: str, seconds: float) -> dict:
    """Rounds of all variants, forwards and backwards, until the time is up."""
    times: dict[str, list[float]] = {variant: [] for _, variant in variants}
    cpu: dict[str, list[float]] = {variant: [] for _, variant in variants}
    # Two steps a turn, the faster counts: the first one of a turn finds the caches of the other side.
    repeats, least = cell.get("repeats", 2), cell.get("rounds", MIN_ROUNDS)
    turn = lambda side, variant, phase: children[side].ask(do="time", variant=variant, phase=phase, repeats=repeats)
    for side, variant in variants if repeats > 1 else ():
        for phase in cell["phases"]:
            turn(side, variant, phase)
    start, before, used, rounds = time.perf_counter(), machine_time(), 0.0, 0
    while rounds < least or (rounds < MAX_ROUNDS and time.perf_counter() - start < seconds):
        for side, variant in variants[:: 1 if rounds % 2 == 0 else -1]:
            total = {"wall": 0.0, "cpu": 0.0}
            timed, meant = cell.get("extrapolated", {}).get(variant, (1, 1))
            for phase, share in cell["phases"].items():
                answer = turn(side, variant, phase)
                used += sum(answer["cpu"])
                for key in total:
                    total[key] += share * min(answer[key]) * meant / timed
            times[variant].append(total[clock])
            cpu[variant].append(total["cpu"])
        rounds += 1
    span = time.perf_counter() - start
    busy, _, stolen = (b - a for a, b in zip(before, machine_time(), strict=True))
    ours = np.array(times["jax"])
    return {
        "clock": clock,
        "rounds": rounds,
        "median_ms": {v: 1e3 * float(np.median(t)) for v, t in times.items()},
        "min_ms": {v: 1e3 * float(np.min(t)) for v, t in times.items()},
        "median_cpu_ms": {v: 1e3 * float(np.median(t)) for v, t in cpu.items()},
        "ratios": {v: paired_ratio(np.array(times[v]), ours) for v in times if v != "jax"},
        # What others took of the machine meanwhile, of all its cores.
        "others_share": max(0.0, (busy + stolen - used) / (span * os.cpu_count())),
    }


def environment(args: argparse.Namespace, packages: list[str]) -> dict:
    """What the figures depend on."""
    cpu = [
        line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    version = lambda python, package: (
        os.popen(f"{python} -c 'import importlib.metadata as m; print(m.version(\"{package}\"))'").read().strip()
    )
    return {
        "cpu": f"{os.cpu_count()} x {cpu[0] if cpu else platform.machine()}",
        "packages": {"python": platform.python_version(), "jax": version(sys.executable, "jax")}
        | {package: version(args.torch_python, package) for package in packages},
        "allocator": "glibc.malloc.hugetlb=1 on both sides",
        "dtype": "float32",
        "threads": 1 if args.core is not None else os.cpu_count(),
        "idle_before": idle_share(),
        "load_before": os.getloadavg()[0],
    }
