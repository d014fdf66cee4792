"""The `vimlab launch` command: starts a vimlab command on many processes, here or elsewhere, and looks after it."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from vimlab.config import ConfigError
from vimlab.launch import control, gke, local, slurm, tpu_vm
from vimlab.launch.accelerators import parse_slice
from vimlab.launch.record import LaunchFolder, slug, workdir_of

CONTROL = ("status", "logs", "stop")


def main(argv: Sequence[str]) -> int:
    """The `launch` command. Returns 0 for a finished run, 75 where the same command goes on, else what failed."""
    argv = list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    parser = build_parser()
    args, command = parser.parse_args(argv[:split]), argv[split + 1 :]
    if args.how in CONTROL:
        if command:
            raise ConfigError(f"`vimlab launch {args.how}` takes no command after `--`")
        return _control(args)
    from vimlab.cli import COMMANDS

    if not command or command[0] not in COMMANDS:
        raise ConfigError(f"give the vimlab command to launch after `--`, as in `vimlab launch {args.how} … -- train --config configs/x.py --workdir W`"
                          + (f"; {command[0]!r} is none" if command else ""))
    return _launch(args, command)


def _launch(args: argparse.Namespace, command: Sequence[str]) -> int:
    folder = LaunchFolder(workdir_of(command))
    if args.how == "local":
        plan = local.Plan(processes=args.processes, devices_per_process=args.devices_per_process, restarts=args.restarts, retries=args.retries,
                          grace=args.grace)
        return local.launch([sys.executable, "-m", "vimlab", *command], folder, plan, dry=args.dry_run)
    dry = not args.run
    name = args.name or slug(folder.workdir, gke.NAME_LIMIT)
    if args.how == "slurm":
        return slurm.launch(command, folder, slurm.Slurm(
            name=name, nodes=args.nodes, time=args.time, tasks_per_node=args.tasks_per_node, gpus_per_node=args.gpus_per_node,
            cpus_per_task=args.cpus_per_task, save_seconds=args.save_seconds, partition=args.partition, account=args.account, qos=args.qos,
            restarts=args.restarts, folder=args.source.absolute(), python=args.python, setup=args.setup, extra=args.sbatch), dry=dry)  # fmt: skip
    if slug(name, gke.NAME_LIMIT) != name:
        raise ConfigError(f"--name {name!r} must be lower-case letters, digits and dashes, at most {gke.NAME_LIMIT}, a letter first")
    if args.how == "gke":
        return gke.launch(command, folder, gke.Gke(
            name=name, image=args.image, slice=parse_slice(args.topology, args.chips_per_host), slices=args.slices, namespace=args.namespace,
            queue=args.queue, priority=args.priority, spot=args.spot, service_account=args.service_account, environment=dict(args.env),
            claim=args.volume_claim, mount=args.mount, restarts=args.restarts, grace=args.grace), dry=dry)  # fmt: skip
    tpus = parse_slice(args.topology)
    return tpu_vm.launch(command, folder, tpu_vm.TpuVm(
        name=name, slice=tpus, slices=args.slices, zone=args.zone, project=args.project, runtime=args.runtime_version or tpus.generation.runtime,
        tier=[flag for flag, on in (("--spot", args.spot), ("--reserved", args.reserved)) if on], source=None if args.no_copy else args.source,
        setup="\n".join(args.setup) or tpu_vm.SETUP, python=args.python or tpu_vm.PYTHON, poll=args.poll, keep=args.keep, extra=args.create,
    ), dry=dry, restarts=args.restarts, retries=args.retries)  # fmt: skip


def _control(args: argparse.Namespace) -> int:
    launched = control.open_launch(LaunchFolder(args.workdir), args.dry_run)
    if args.how == "status":
        return launched.status()
    return launched.stop(args.delete) if args.how == "stop" else launched.logs(args.worker, args.lines, args.follow)


def build_parser() -> argparse.ArgumentParser:
    """The options of every way of launching."""
    parser = argparse.ArgumentParser(
        prog="vimlab launch", description="Start a vimlab command on many processes: vimlab launch HOW [options] -- train --config … --workdir W. "
        "Commands of other programs are printed before they run; without --run, tpu-vm, gke and slurm only print.")
    ways = parser.add_subparsers(dest="how", required=True, metavar="HOW")
    _add_local(ways.add_parser("local", help="N processes on this machine"))
    _add_tpu_vm(ways.add_parser("tpu-vm", help="Cloud TPU VMs, through queued resources"))
    _add_gke(ways.add_parser("gke", help="a JobSet of TPU slices on Google Kubernetes Engine"))
    _add_slurm(ways.add_parser("slurm", help="a Slurm batch job"))
    for name, text in (("status", "how a launch is; its exit code tells too"), ("logs", "what its workers say"), ("stop", "save, and end it")):
        sub = ways.add_parser(name, help=text)
        sub.add_argument("--workdir", required=True, help="the run's")
        sub.add_argument("--dry-run", action="store_true", help="print other programs' commands, run none")
        if name == "logs":
            sub.add_argument("--worker", metavar="I", help="this one alone")
            sub.add_argument("--lines", type=int, default=20, metavar="N", help="from the end (default 20)")
            sub.add_argument("--follow", action="store_true", help="go on while it runs; of worker 0 unless another is named")
        if name == "stop":
            sub.add_argument("--delete", action="store_true", help="tpu-vm: delete the TPUs too")
    return parser


def _add_starts(parser: argparse.ArgumentParser, restarts: int, *, retries: bool = True) -> None:
    parser.add_argument("--restarts", type=_count, default=restarts, metavar="N", help=f"new starts after preemptions (default {restarts})")
    if retries:
        parser.add_argument("--retries", type=_count, default=0, metavar="N", help="new starts after failures (default 0)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="of the job (default: from the workdir)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--run", action="store_true", help="do it")
    group.add_argument("--dry-run", action="store_true", help="print only (this is the default)")


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--processes", type=_positive, required=True, metavar="N", help="how many")
    parser.add_argument("--devices-per-process", type=_positive, metavar="N", help="simulated CPU devices of each")
    parser.add_argument("--grace", type=float, default=120, metavar="SECONDS", help="to save and end once asked to (default 120)")
    parser.add_argument("--dry-run", action="store_true", help="print the processes' commands only")
    _add_starts(parser, 10)


def _add_topology(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", required=True, metavar="TYPE:SHAPE", help="of a slice, as in v5e:16x16 or v4:4x4x8")
    parser.add_argument("--slices", type=_positive, default=1, metavar="N", help="how many slices (default 1)")
    parser.add_argument("--spot", action="store_true", help="on spot capacity, which may be taken away")


def _add_tpu_vm(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_topology(parser)
    parser.add_argument("--zone", required=True, help="as in us-central2-b")
    parser.add_argument("--project", help="default: gcloud's configuration")
    parser.add_argument("--reserved", action="store_true", help="on reserved capacity")
    parser.add_argument("--runtime-version", help="of the VMs (default: the usual one of the TPU type)")
    parser.add_argument("--create", action="append", default=[], metavar="OPTION", help="further option of `queued-resources create`; repeatable")
    parser.add_argument("--source", type=pathlib.Path, default=pathlib.Path("."), metavar="FOLDER", help="git repository to copy (default: here)")
    parser.add_argument("--no-copy", action="store_true", help="copy and install nothing: the VMs have it")
    parser.add_argument("--setup", action="append", default=[], metavar="COMMAND", help="installs the copy, in its folder; repeatable "
                        "(default: Python 3.12 and the copy with its extras tpu and gcs into ~/vimlab-env)")
    parser.add_argument("--python", metavar="PATH", help="the VMs' Python that has vimlab (default: of ~/vimlab-env)")
    parser.add_argument("--poll", type=float, default=30, metavar="SECONDS", help="between looks at the queue (default 30)")
    parser.add_argument("--keep", action="store_true", help="leave the TPUs when the run has finished")
    _add_starts(parser, 100)


def _add_gke(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_topology(parser)
    parser.add_argument("--chips-per-host", type=int, metavar="N", help="8 where a 2x4 slice is one machine")
    parser.add_argument("--image", required=True, help="container image that holds vimlab[tpu] and the configs")
    parser.add_argument("--namespace", help="default: kubectl's")
    parser.add_argument("--queue", metavar="LOCALQUEUE", help="Kueue's local queue")
    parser.add_argument("--priority", metavar="CLASS", help="Kubernetes' priority class")
    parser.add_argument("--service-account", metavar="NAME", help="Kubernetes' account, which may write to the bucket")
    parser.add_argument("--env", type=_variable, action="append", default=[], metavar="NAME=VALUE", help="variable of the containers; repeatable")
    parser.add_argument("--volume-claim", metavar="NAME", help="persistent volume claim that holds the workdir")
    parser.add_argument("--mount", default="/workdir", metavar="FOLDER", help="where the volume is (default /workdir)")
    parser.add_argument("--grace", type=_count, default=300, metavar="SECONDS", help="to save once asked to end (default 300)")
    _add_starts(parser, 100, retries=False)


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--nodes", type=_positive, required=True, metavar="N", help="machines")
    parser.add_argument("--tasks-per-node", type=_positive, default=1, metavar="N", help="processes on each (default 1, which drives all GPUs)")
    parser.add_argument("--gpus-per-node", metavar="[TYPE:]N", help="of each machine")
    parser.add_argument("--cpus-per-task", type=_positive, metavar="N", help="of each process")
    parser.add_argument("--time", default="24:00:00", metavar="LIMIT", help="of each start, HH:MM:SS or DAYS-HH:MM:SS (default 24:00:00)")
    parser.add_argument("--save-seconds", type=_positive, default=300, metavar="N", help="before the limit, when it saves (default 300)")
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument("--account", help="to charge")
    parser.add_argument("--qos", help="quality of service")
    parser.add_argument("--source", type=pathlib.Path, default=pathlib.Path("."), metavar="FOLDER", help="where the command runs (default: here)")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="the nodes' Python that has vimlab (default: this one)")
    parser.add_argument("--setup", action="append", default=[], metavar="LINE", help="of the script, first, as in 'module load cuda'; repeatable")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="further option, as in --sbatch=--constraint=h100; repeatable")
    _add_starts(parser, 100, retries=False)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["launch", *sys.argv[1:]])
