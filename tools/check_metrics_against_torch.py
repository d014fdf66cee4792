"""Compares vimlab's metrics with those of torch's packages, on the same weights and real images, and prints each difference.

    .venv-torch/bin/python tools/check_metrics_against_torch.py [SECTION …] [--jax-python .venv/bin/python] [--data ../shared/data] [--write]

Run it with the interpreter that has torch; the JAX half runs in a process of the other. A section is a module of tools/known_answers:

  ABOUT                     a line on what is compared with what, and PACKAGES, the torch side's.
  TOLERANCE                 how far apart an array may be: the largest difference, over the largest magnitude.
  inputs(data)              JAX's side: {name: array}, from the folder of real data.
  theirs(inputs, folder)    torch's side: {name: array}; what it saves in `folder`, such as weights, the other side finds there.
  ours(inputs, folder)      JAX's side: the same names.
  stored(inputs, theirs)    optional: what `--write` stores as tests/known_answers/SECTION.npz, for tests without torch.

A section that needs no data may have `make(path)` and `check(path)` in place of all that: torch's side writes the file that the
ordinary tests read, and JAX's returns (what, difference, tolerance) of each answer in it.
"""

import argparse
import importlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
SECTIONS = tuple(sorted(p.stem for p in (HERE / "known_answers").glob("*.py") if p.stem != "__init__"))
Arrays = dict[str, np.ndarray]


def main() -> int:
    """Compares every section asked for; 1 where one differs too much, 2 where it cannot be compared."""
    args = arguments()
    if args.half:
        half(args)
        return 0
    if not pathlib.Path(args.jax_python).exists():
        print(f"there is no Python with JAX at {args.jax_python}; give --jax-python", file=sys.stderr)
        return 2
    passed = [compare(name, args) for name in args.section or SECTIONS]
    print(f"{sum(passed)} of {len(passed)} sections agree")
    return 0 if all(passed) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="*", choices=[*SECTIONS, []], metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument("--jax-python", default=os.environ.get("JAX_PYTHON", str(ROOT / ".venv/bin/python")))
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "../shared/data", help="the folder of real images")
    parser.add_argument("--write", action="store_true", help="also store torch's answers for the ordinary tests")
    parser.add_argument("--half", choices=("inputs", "ours", "check"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def half(args: argparse.Namespace) -> None:
    """The JAX side of one section, in a process of its own: reads from and writes to `args.folder`."""
    sys.path.insert(0, str(ROOT))
    module = section(args.section[0])
    if args.half == "check":
        rows = module.check(args.folder / "answers.npz")
        for what, value, tolerance in rows:
            print(f"  {what:63} {value:.2e}  {'agrees' if value <= tolerance else 'DIFFERS'}")
        sys.exit(int(any(value > tolerance for _, value, tolerance in rows)))
    found = module.inputs(args.data) if args.half == "inputs" else module.ours(load(args.folder / "inputs.npz"), args.folder)
    np.savez(args.folder / f"{args.half}.npz", **found)


def compare(name: str, args: argparse.Namespace) -> bool:
    """Prints every difference of one section; whether all are small enough."""
    module = section(name)
    if not hasattr(module, "theirs"):
        return compare_file(name, module, args)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in module.PACKAGES)
    print(f"{name}: {module.ABOUT} ({versions})")
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        run_half("inputs", name, folder, args)
        inputs = load(folder / "inputs.npz")
        theirs = module.theirs(inputs, folder)
        run_half("ours", name, folder, args)
        ours = load(folder / "ours.npz")
    if set(ours) != set(theirs):
        print(f"  the sides have different outputs: {sorted(set(ours) ^ set(theirs))}")
        return False
    found = {key: difference(ours[key], theirs[key]) for key in theirs}
    for key, value in found.items():
        print(f"  {key:44} {str(np.shape(theirs[key])):18} {value:.2e}  {'agrees' if value <= module.TOLERANCE else 'DIFFERS'}")
    agree = all(value <= module.TOLERANCE for value in found.values())
    if args.write and agree:
        path = ROOT / "tests/known_answers" / f"{name}.npz"
        np.savez_compressed(path, **module.stored(inputs, theirs))
        print(f"  wrote {path.relative_to(ROOT)}, {path.stat().st_size / 1e3:.0f} KB")
    return agree


def compare_file(name: str, module, args: argparse.Namespace) -> bool:
    """The same of a section with `make` and `check`."""
    print(f"{name}: {module.__doc__.splitlines()[0]}", flush=True)
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        module.make(folder / "answers.npz")
        agree = run_half("check", name, folder, args)
        if args.write and agree:
            path = ROOT / "tests/known_answers" / f"{name}.npz"
            shutil.copyfile(folder / "answers.npz", path)
            print(f"  wrote {path.relative_to(ROOT)}, {path.stat().st_size / 1e3:.0f} KB")
    return agree


def run_half(which: str, name: str, folder: pathlib.Path, args: argparse.Namespace) -> bool:
    """Runs JAX's side; whether it found nothing wrong. Raises CalledProcessError where it could not do its work."""
    command = [args.jax_python, __file__, name, "--half", which, "--folder", str(folder), "--data", str(args.data)]
    code = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}).returncode
    if code and (which, code) != ("check", 1):
        raise subprocess.CalledProcessError(code, command)
    return not code


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference over the largest magnitude; infinite for other shapes or where a number is not finite."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def section(name: str):
    """The module of a section."""
    return importlib.import_module(f"known_answers.{name}")


def load(path: pathlib.Path) -> Arrays:
    with np.load(path) as arrays:
        return dict(arrays)


if __name__ == "__main__":
    sys.exit(main())
