"""`vimlab launch slurm`: a batch script that saves before its time is over, and queues itself again until the run has finished."""

import dataclasses
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from vimlab import exits
from vimlab.config import ConfigError
from vimlab.launch.outcome import GOES_ON
from vimlab.launch.record import LaunchFolder, now
from vimlab.launch.shell import LaunchError, Shell
from vimlab.paths import is_bucket

LAST_WAIT = 600  # Seconds between the first process's end and the others': the first one may still be writing a report.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm:
    """A batch job.

    Attributes:
      name: of the job.
      nodes: machines.
      tasks_per_node: processes on each; one a machine drives all of its GPUs.
      gpus_per_node, cpus_per_task: of each; None asks for none in particular.
      time: limit, as Slurm writes it: 24:00:00, or 2-00:00:00 for days.
      save_seconds: how long before the limit the processes are asked to save.
      partition, account, qos: where and for whom; None leaves it to Slurm.
      restarts: how often the job may queue itself again.
      folder: where the command is run.
      python: the interpreter there.
      setup: shell lines that come first, such as `module load cuda`.
      extra: further options of sbatch, as in ("--constraint=h100",).
    """

    name: str
    nodes: int
    time: str
    tasks_per_node: int = 1
    gpus_per_node: str | None = None
    cpus_per_task: int | None = None
    save_seconds: int = 300
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    restarts: int = 100
    folder: pathlib.Path
    python: str = sys.executable
    setup: Sequence[str] = ()
    extra: Sequence[str] = ()

    def check(self) -> None:
        """Raises ConfigError for options that sbatch would refuse, or understand otherwise than meant."""
        if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", self.time):
            raise ConfigError(f"--time {self.time!r} is not a time as Slurm writes it; give HH:MM:SS or DAYS-HH:MM:SS")
        for option in self.extra:
            if not re.fullmatch(r"--[a-z][a-z-]*(=\S+)?", option):
                raise ConfigError(f"--sbatch {option!r} is not one option of sbatch, as in --sbatch=--constraint=h100")


def script(command: Sequence[str], logs: pathlib.Path, slurm: Slurm) -> str:
    """The batch script. It ends with the exit code of its run; 75 where the same command goes on but it may not queue itself again."""
    optional = {
        "gpus-per-node": slurm.gpus_per_node, "cpus-per-task": slurm.cpus_per_task, "partition": slurm.partition, "account": slurm.account,
        "qos": slurm.qos,
    }  # fmt: skip
    options = [
        f"--job-name={slurm.name}",
        f"--nodes={slurm.nodes}",
        f"--ntasks-per-node={slurm.tasks_per_node}",
        *(f"--{key}={value}" for key, value in optional.items() if value is not None),
        f"--time={slurm.time}",
        f"--signal=TERM@{slurm.save_seconds}",  # Without B: it reaches the processes, not this script.
        "--requeue",
        "--open-mode=append",
        f"--output={logs}/slurm_%j.log",
        *slurm.extra,
    ]
    run = shlex.join([slurm.python, "-m", "vimlab.launch.worker", "--", *command])
    return "\n".join([
        "#!/bin/bash",
        *(f"#SBATCH {_directive(option)}" for option in options),
        "",
        "set -u",
        *slurm.setup,
        f"cd {shlex.quote(str(slurm.folder))} || exit {exits.USER_ERROR}",
        "",
        'echo "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"',
        "# A process that has saved ends before the others: its end is not theirs.",
        f"srun --kill-on-bad-exit=0 --wait={LAST_WAIT} {run}",
        "code=$?",
        'case "$code" in',
        f"  {' | '.join(map(str, GOES_ON))})  # Saved and stopped, or lost: the same command goes on.",
        f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {slurm.restarts} ]; then',
        '      echo "exit code $code: the job queues itself again"',
        '      scontrol requeue "$SLURM_JOB_ID" && exit 0',
        "    fi",
        f"    exit {exits.RESTART}",
        "    ;;",
        "esac",
        'echo "exit code $code"',
        'exit "$code"',
        "",
    ])  # fmt: skip


def _directive(option: str) -> str:
    """An option as sbatch reads it from a script, where spaces end it."""
    key, equals, value = option.partition("=")
    return f'{key}="{value}"' if re.search(r"\s", value) else key + equals + value


def launch(command: Sequence[str], folder: LaunchFolder, slurm: Slurm, *, dry: bool) -> int:
    """Prints the script; unless dry, submits it. Returns an exit code.

    Raises:
      ConfigError: a mistake in the options, or a launch on this workdir is running.
      LaunchError: sbatch refused the script.
    """
    slurm.check()
    text = script(command, folder.path, slurm)
    sys.stdout.write(text)
    shell, file = Shell(dry, mark="# $ "), folder.path / f"{slurm.name}.sbatch"
    submit = ["sbatch", "--parsable", str(file)]
    if is_bucket(folder.workdir):
        shell.note(f"the job's own log goes to {folder.path}, which every node must see")
    if dry:
        shell.show(submit)
        return exits.FINISHED
    with folder.hold():
        _check_no_job(folder, shell)
        file.write_text(text)
        code, job, error = shell.read(submit)
        if code:
            raise LaunchError(f"sbatch refused {file}: {error}")
        job = job.partition(";")[0]
        shell.note(f"submitted as job {job}")
        folder.write({"kind": "slurm", "launcher": os.getpid(), "command": list(command), "time": now(), "job": job})
    return exits.FINISHED


def _check_no_job(folder: LaunchFolder, shell: Shell) -> None:
    """Raises ConfigError where the last job of this workdir is queued or running."""
    if (folder.path / "launch.json").exists() and (record := folder.read())["kind"] == "slurm":
        code, state, _ = shell.read(["squeue", "--noheader", "--format=%T", f"--jobs={record['job']}"])
        if code == 0 and state:  # squeue fails for a job that it has forgotten.
            raise ConfigError(f"Slurm job {record['job']} on {folder.workdir} is {state.lower()}; look with `vimlab launch status --workdir "
                              f"{folder.workdir}`, or end it with `vimlab launch stop --workdir {folder.workdir}`")
