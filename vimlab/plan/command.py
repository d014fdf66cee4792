"""`vimlab plan --config C --topology v5e:16x16`: whether a run fits and how long it takes, on a machine without any of its chips.

Nothing here imports JAX before the environment is set, for JAX and libtpu read it when they are loaded.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from vimlab import config as configs
from vimlab import exits
from vimlab.config import ConfigError, UserError
from vimlab.plan.compiling import leave, prepare_environment

STAND_INS = ("tokenizer_config", "classes", "examples", "vocabulary")


def main(argv: Sequence[str]) -> int:
    """The `plan` command. Returns 0 where the run fits, 1 where it does not."""
    argv, overrides = configs.split_overrides(argv)
    args = _parser().parse_args(argv)
    prepare_environment()

    from vimlab import run as runs
    from vimlab.plan import chips, compiling, report, search
    from vimlab.plan.abstract import StandIns
    from vimlab.plan.plan import make_plan

    where = chips.topology(args.topology)
    config = runs.resolve(configs.load(args.config), overrides)
    config = with_mesh(config, args.mesh) if args.mesh else config
    stand_ins = StandIns(
        config_file=args.config.partition(":")[0], tokenizer=args.tokenizer_config, classes=args.classes, examples=args.examples,
        vocabulary=args.vocabulary,
    )  # fmt: skip
    make = lambda config: make_plan(config, where, stand_ins, full=args.full, compiles=not args.no_compile, sample=args.sample)
    if args.search and args.sample is not None:
        raise ConfigError("--search tries settings of training, and --sample plans decoding; give one of the two")
    if args.search:
        apart = where.chip.tpu and not args.no_compile and compiling.has_libtpu()
        of = (lambda candidate: _apart(candidate, args, overrides)) if apart else (lambda candidate: make(candidate.config))
        return _search(search.candidates(config, where, stand_ins), of, args)
    plan = make(config)
    if not plan["memory"]["fits"]:
        plan["advice"] = [search.advise(config, where, stand_ins)] if args.sample is None else ["try fewer images, or a mesh with more tensor"]
    _write(args.json, plan)
    print(report.text(plan, args.config))
    return leave(exits.FINISHED if plan["memory"]["fits"] else exits.FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vimlab plan", description="Whether a run fits a topology, what a step costs, and how long the run takes. Exit code 1: it does not fit."
    )
    parser.add_argument("--config", required=True, help="config file, as for `vimlab train`; set single keys with --config.model.remat=full")
    parser.add_argument("--topology", required=True, help="chips to plan for, such as v5e:16x16, v4:8x8x8 or h100:64")
    parser.add_argument("--mesh", help="mesh in place of the config's, such as data=4,fsdp=64; axes not named are 1, data takes what is left")
    parser.add_argument("--sample", nargs="?", type=int, const=0, help="plan the decoding of so many images at a time in place of the training step")
    parser.add_argument("--search", action="store_true", help="try other meshes, recomputation and accumulation, and print the table of those that fit")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the plan to")
    parser.add_argument("--full", action="store_true", help="compile to machine code too, which takes minutes: tells the size of the program")
    parser.add_argument("--no-compile", action="store_true", help="arithmetic alone")
    stand_ins = parser.add_argument_group("what is taken for granted where the config names files that are not here")
    stand_ins.add_argument("--tokenizer-config", help="config file of the tokenizer")
    stand_ins.add_argument("--classes", type=int, default=1000, help="classes of the data")
    stand_ins.add_argument("--examples", type=int, default=1_281_167, help="images of the data")
    stand_ins.add_argument("--vocabulary", type=int, default=16_000, help="text ids")
    return parser


def with_mesh(config: Any, text: str) -> Any:
    """The config with the mesh of a text such as `data=4,fsdp=64`. Raises ConfigError."""
    import dataclasses

    from vimlab.parallel.mesh import MeshConfig

    pairs = [item.partition("=")[::2] for item in text.split(",") if item]
    if not all(value for _, value in pairs):
        raise ConfigError(f"--mesh {text!r} is not a list of sizes; write it as data=4,fsdp=64")
    try:
        return dataclasses.replace(config, mesh=configs.resolve(MeshConfig, {}, pairs))
    except ConfigError as error:
        raise ConfigError(f"--mesh {text!r}: {error}") from None


def _search(candidates: Any, make: Any, args: argparse.Namespace, most: int = 6) -> int:
    """Plans the candidates that promise the shortest steps, and prints the table of all."""
    from vimlab.plan import report

    found = sorted(candidates, key=lambda c: (c.seconds, len(c.overrides)))
    rows, plans = [], []
    for rank, candidate in enumerate(found):
        row = [" ".join(candidate.overrides) or "as configured", report.size(candidate.memory), f"{candidate.seconds:.3g}"]
        if rank < most:
            plan = make(candidate)
            plans.append(plan | {"overrides": candidate.overrides})
            total = plan["memory"].get("compiled", {}).get("total")
            row += [report.size(total) if total else "" if plan["memory"]["by"] == "estimate" else "does not fit"]
            row += [f"{plan['step']['roofline']['seconds']:.3g}", plan["step"]["roofline"]["bound"]]
        rows.append(row + [""] * (6 - len(row)))
    if not rows:
        raise ConfigError("no mesh, recomputation or accumulation that was tried fits by the estimate; take more chips")
    _write(args.json, plans)
    print(report.table(["settings", "estimate", "roofline s", "compiler", "roofline s", "bound by"], rows))
    return exits.FINISHED if any(plan["memory"]["fits"] for plan in plans) else exits.FAILED


def _apart(candidate: Any, args: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The plan of a candidate, made by a process of its own: the compiler would go on in this one beside the next candidate's."""
    with tempfile.TemporaryDirectory(prefix="vimlab_plan_") as folder:
        file = pathlib.Path(folder) / "plan.json"
        command = [sys.executable, "-m", "vimlab", "plan", "--config", args.config, "--topology", args.topology, "--json", str(file)]
        command += [f"--{name.replace('_', '-')}={value}" for name in STAND_INS if (value := getattr(args, name)) is not None]
        command += [f"--config.{key}={value}" for key, value in overrides] + (["--mesh", args.mesh] if args.mesh else [])
        command += [*shlex.split(" ".join(candidate.overrides)), *(["--full"] if args.full else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if not file.is_file():
            raise UserError(f"`{shlex.join(command)}` ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        return json.loads(file.read_text())


def _write(path: pathlib.Path | None, value: Any) -> None:
    if path:
        from vimlab.run import write_json

        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
