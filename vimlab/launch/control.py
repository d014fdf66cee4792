"""`vimlab launch status|logs|stop`: what runs on a workdir, what it says, and its end, for each way of launching."""

import dataclasses
import datetime
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from vimlab import exits
from vimlab.config import ConfigError
from vimlab.launch.accelerators import parse_slice
from vimlab.launch.local import describe
from vimlab.launch.record import LaunchFolder, Shown
from vimlab.launch.shell import Shell
from vimlab.launch.tpu_vm import TpuVm

PATIENCE = 150.0  # Seconds that `stop` waits for a launcher on this machine.


@runtime_checkable
class Launched(Protocol):
    """A launch as its folder tells of it."""

    def status(self) -> int:
        """Says how it is. Returns an exit code."""

    def logs(self, worker: str | None, lines: int, follow: bool) -> int:
        """Shows the last `lines` of one worker's log, or of what is usual; with `follow`, also what is added. Returns an exit code."""

    def stop(self, delete: bool) -> int:
        """Has it save and end; with `delete`, its machines are deleted too. Returns an exit code."""


def open_launch(folder: LaunchFolder, dry: bool) -> Launched:
    """The last launch on the folder's workdir. Raises ConfigError where there was none."""
    record, shell = folder.read(), Shell(dry)
    print(f"{record['kind']} launch on {folder.workdir}: vimlab {' '.join(_vimlab_part(record['command']))}")
    return {"local": Local, "tpu-vm": Tpu, "gke": Gke, "slurm": Slurm}[record["kind"]](folder, record, shell)


def _vimlab_part(command: list[str]) -> list[str]:
    return command[command.index("vimlab") + 1 :] if "vimlab" in command else command


@dataclasses.dataclass
class Local:
    """Processes on this machine."""

    folder: LaunchFolder
    record: dict[str, Any]
    shell: Shell

    def status(self) -> int:
        """Says how each process is. Returns 0 running or finished, 75 to be launched again, else what failed."""
        held = self.folder.is_held()
        begun = datetime.datetime.fromisoformat(self.record["time"]).strftime("%H:%M:%S UTC on %d %b %Y")
        print(f"{_summary(self.record, held)}, start {self.record['start']}, since {begun}")
        for i, worker in enumerate(self.record["workers"]):
            # Without the lock no process is left; without a code its launcher was killed before it could note one.
            state = describe(worker["code"]) if worker["code"] is not None else f"process {worker['pid']}" if held else "ended unseen"
            print(f"  worker {i}: {state:40} {_last_line(self.folder.log(i))}".rstrip())
        return _status_code(self.record, held)

    def logs(self, worker: str | None, lines: int, follow: bool) -> int:
        """Shows the end of the logs in the folder, or of one of them; follows it while the launch runs."""
        return show_files(self.folder, worker, lines, follow, running=self.folder.is_held)

    def stop(self, delete: bool) -> int:
        """Asks the launcher to end, or its processes where it is gone itself, and waits for that."""
        _refuse_delete(delete, "local")
        if not self.folder.is_held():
            print("nothing is running")
            return exits.FINISHED
        pids = [self.record["launcher"], *(w["pid"] for w in self.record["workers"] if w["code"] is None)]
        if self.record["host"] != os.uname().nodename:
            raise ConfigError(f"this launch runs on the machine {self.record['host']}; stop it there")
        # The launcher hands the signal on; where it was killed its processes get it themselves.
        alive = [pid for pid in pids if _is_alive(pid)]
        for pid in alive[:1] if pids[0] in alive else alive:
            self.shell.show(["kill", "-TERM", str(pid)])
            if not self.shell.dry:
                os.kill(pid, signal.SIGTERM)
        return exits.FINISHED if self.shell.dry else _wait_for(self.folder)


@dataclasses.dataclass
class Tpu:
    """Cloud TPU VMs, and the launcher on this machine that looks after them."""

    folder: LaunchFolder
    record: dict[str, Any]
    shell: Shell

    @property
    def tpu(self) -> TpuVm:
        t = self.record["tpu"]
        return TpuVm(name=t["name"], slice=parse_slice(t["topology"]), slices=t["slices"], zone=t["zone"], project=t["project"], tier=(), runtime="",
                     source=None)

    def status(self) -> int:
        held = self.folder.is_held()
        print(f"{_summary(self.record, held)}, start {self.record['start']}")
        self.shell.run(self.tpu.resource("describe", "--format=value(state.state)"))
        return _status_code(self.record, held)

    def logs(self, worker: str | None, lines: int, follow: bool) -> int:
        return self.shell.run(self.tpu.ssh(self.tpu.log_script(lines, follow), worker or "0"))

    def stop(self, delete: bool) -> int:
        code = exits.FINISHED
        if self.folder.is_held():
            self.shell.show(["kill", "-TERM", str(self.record["launcher"])])
            if not self.shell.dry:
                os.kill(self.record["launcher"], signal.SIGTERM)
                code = _wait_for(self.folder)
        else:  # The launcher is gone; what it started may not be.
            code = self.shell.run(self.tpu.ssh(self.tpu.stop_script()))
        if delete:
            self.shell.check(self.tpu.resource("delete", "--force", "--quiet"))
        return code


@dataclasses.dataclass
class Gke:
    """A JobSet of a cluster."""

    folder: LaunchFolder
    record: dict[str, Any]
    shell: Shell

    def status(self) -> int:
        job = self.record["job"]
        return self._kubectl("get", "jobset", job) or self._kubectl("get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={job}")

    def logs(self, worker: str | None, lines: int, follow: bool) -> int:
        index, _, host = (worker or "0").rpartition("_")  # As in the logs' names: SLICE_HOST, or the host alone.
        labels = {"jobset.sigs.k8s.io/jobset-name": self.record["job"], "jobset.sigs.k8s.io/job-index": index or "0",
                  "batch.kubernetes.io/job-completion-index": host}
        selector = ",".join(f"{k}={v}" for k, v in labels.items())
        return self._kubectl("logs", f"--selector={selector}", f"--tail={lines}", *(["--follow"] if follow else []))

    def stop(self, delete: bool) -> int:
        """Deletes the JobSet; its pods save as they are asked to end."""
        _refuse_delete(delete, "gke")
        return self._kubectl("delete", "jobset", self.record["job"])

    def _kubectl(self, *args: str) -> int:
        return self.shell.run(["kubectl", *args, *([f"--namespace={self.record['namespace']}"] if self.record["namespace"] else [])])


@dataclasses.dataclass
class Slurm:
    """A batch job."""

    folder: LaunchFolder
    record: dict[str, Any]
    shell: Shell

    def status(self) -> int:
        return self.shell.run(["squeue", "--states=all", f"--jobs={self.record['job']}"])

    def logs(self, worker: str | None, lines: int, follow: bool) -> int:
        job = self.record["job"]
        return show_files(self.folder, worker, lines, follow, running=lambda: bool(Shell(False).read(["squeue", "--noheader", f"--jobs={job}"])[1]))

    def stop(self, delete: bool) -> int:
        """Asks the job's processes to save and end; the job may not queue itself again."""
        _refuse_delete(delete, "slurm")
        job = self.record["job"]
        self.shell.check(["scontrol", "update", f"JobId={job}", "Requeue=0"])
        self.shell.run(["scancel", "--state=PENDING", job])
        return self.shell.run(["scancel", "--signal=TERM", job])


def show_files(folder: LaunchFolder, worker: str | None, lines: int, follow: bool, running: Callable[[], bool]) -> int:
    """Shows the last lines of one worker's log, of worker 0's where one is followed, else of all; and what is added while it runs."""
    if worker is None and not follow:
        for log in folder.logs():
            print(f"==> {log} <==\n{_tail(log, lines)}")
        return exits.FINISHED
    log = folder.log(worker or "0")
    if not log.exists():
        known = ", ".join(p.stem.removeprefix("worker_") for p in folder.logs()) or "none"
        raise ConfigError(f"there is no log of worker {worker or 0} in {folder.path} (there is: {known})")
    shown = Shown(log, log.stat().st_size)
    print(_tail(log, lines), flush=True)
    while follow:
        follow = running()  # Asked first: what is written until it ends is still shown.
        shown.step()
        time.sleep(0.5 if follow else 0)
    return exits.FINISHED


def _tail(log: pathlib.Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _last_line(log: pathlib.Path) -> str:
    return _tail(log, 1)[:100] if log.exists() else ""


def _summary(record: dict[str, Any], held: bool) -> str:
    if record["outcome"]:
        return (record["outcome"] if record["outcome"] == record["why"] else f"{record['outcome']}: {record['why']}") if not held else f"between two starts ({record['why']})"
    return "running" if held else "ended unseen: its launcher was killed; the same launch goes on"


def _status_code(record: dict[str, Any], held: bool) -> int:
    codes = {"finished": exits.FINISHED, "refused": exits.USER_ERROR, "failed": exits.FAILED}
    return exits.FINISHED if held else codes.get(record["outcome"], exits.RESTART)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for(folder: LaunchFolder) -> int:
    end = time.monotonic() + PATIENCE
    while folder.is_held():
        if time.monotonic() > end:
            print(f"still running after {PATIENCE:g} s; see `vimlab launch status --workdir {folder.workdir}`", file=sys.stderr)
            return exits.FAILED
        time.sleep(0.1)
    print("stopped")
    return exits.FINISHED


def _refuse_delete(delete: bool, kind: str) -> None:
    if delete:
        raise ConfigError(f"--delete is for the TPUs of a tpu-vm launch; this one is {kind}")
