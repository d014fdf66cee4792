"""`vimlab launch tpu-vm`: a run on Cloud TPU VMs through queued resources, made again when they are preempted."""

import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence

from vimlab import exits
from vimlab.launch.accelerators import Slice
from vimlab.launch.outcome import End, Outcome, judge, supervise
from vimlab.launch.record import LaunchFolder, now
from vimlab.launch.shell import LaunchError, Shell, say
from vimlab.launch.source import listing, pack

CONNECTION_LOST = 255  # What ssh, and gcloud after it, ends with.
WAITING = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
ATTEMPTS = 5  # Questions to the service that may fail in a row: it is out of reach at times, a run lasts for weeks.
PROJECT_FOLDER = "vimlab-source"  # Below the home folder on the TPU VMs.
PYTHON = '"$HOME/vimlab-env/bin/python"'
# The VMs' own Python is older than 3.11.
SETUP = """python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 "$HOME/vimlab-env"
python3 -m uv pip install --quiet --python "$HOME/vimlab-env" --editable '.[tpu,gcs]'"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVm:
    """Queued resources and what runs on them.

    Attributes:
      name: of the queued resource, and of its node.
      slice: the TPUs; slices: how many of them.
      zone, project: where; None leaves the project to gcloud's configuration.
      tier: arguments that choose how capacity is had: ("--spot",), ("--reserved",), or none for on demand.
      runtime: software of the VMs.
      extra: further arguments for `queued-resources create`.
      source: the project to copy to the VMs, or None to copy nothing.
      setup: shell commands that make the copied project run, in its folder.
      python: the interpreter there, as the workers' shell should read it.
      poll: seconds between looks at the resource's state.
      keep: whether the resource stays when the run has finished.
    """

    name: str
    slice: Slice
    zone: str
    project: str | None
    tier: Sequence[str]
    runtime: str
    source: pathlib.Path | None
    setup: str = SETUP
    python: str = PYTHON
    slices: int = 1
    extra: Sequence[str] = ()
    poll: float = 30.0
    keep: bool = False

    def where(self) -> list[str]:
        """The arguments that say where."""
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]

    def resource(self, verb: str, *args: str) -> list[str]:
        """A `gcloud compute tpus queued-resources` command on this resource."""
        return ["gcloud", "compute", "tpus", "queued-resources", verb, self.name, *self.where(), *args]

    def create(self) -> list[str]:
        """The command that asks for the TPUs."""
        nodes = [f"--node-id={self.name}"] if self.slices == 1 else [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        return self.resource("create", f"--accelerator-type={self.slice.cloud_type}", f"--runtime-version={self.runtime}", *nodes, *self.tier, *self.extra)

    def ssh(self, command: str, worker: str = "all") -> list[str]:
        """The command that runs a shell command on the workers."""
        return [*self._group(), "ssh", self.name, *self._nodes(), f"--worker={worker}", *self.where(), f"--command={command}"]

    def scp(self, file: str) -> list[str]:
        """The command that copies a file to every worker's home folder."""
        return [*self._group(), "scp", file, f"{self.name}:", *self._nodes(), "--worker=all", *self.where()]

    def _group(self) -> list[str]:
        return ["gcloud", "compute", "tpus", "tpu-vm" if self.slices == 1 else "queued-resources"]

    def _nodes(self) -> list[str]:
        return [] if self.slices == 1 else ["--node=all"]

    def stop_script(self) -> str:
        """What asks the run on a worker to save and end."""
        return f'kill -TERM "$(cut -d" " -f1 "$HOME/.vimlab/{self.name}.pid")"'

    def log_script(self, lines: int, follow: bool) -> str:
        """What shows the end of a worker's log."""
        return f'tail -n {lines} {"-F " if follow else ""}"$HOME/.vimlab/{self.name}.log"'

    def setup_script(self) -> str:
        """What unpacks the copied project on a worker and installs it."""
        return "\n".join([
            "set -e",
            f'rm -rf "$HOME/{PROJECT_FOLDER}"',
            f'mkdir -p "$HOME/{PROJECT_FOLDER}"',
            f'tar -xzf "$HOME/{self.name}.tar.gz" -C "$HOME/{PROJECT_FOLDER}"',
            f'cd "$HOME/{PROJECT_FOLDER}"',
            self.setup,
        ])  # fmt: skip

    def run_script(self, command: Sequence[str]) -> str:
        """What starts the run on a worker."""
        run = f"exec {self.python} -m vimlab.launch.worker --alone {self.name} -- {shlex.join(command)}"
        return f'mkdir -p "$HOME/{PROJECT_FOLDER}" && cd "$HOME/{PROJECT_FOLDER}" && {run}'


def launch(command: Sequence[str], folder: LaunchFolder, tpu: TpuVm, *, dry: bool, restarts: int, retries: int) -> int:
    """Has the TPUs made, runs the command on them, and makes them again after preemptions until the run has finished.

    Returns:
      0 finished, 75 the same command goes on, else what failed.

    Raises:
      ConfigError: a launch on this workdir is running.
      LaunchError: gcloud refused what it was asked.
    """
    shell = Shell(dry)
    if dry:
        Campaign(command, folder, tpu, shell).start(1)
        return exits.FINISHED
    with folder.hold():
        campaign = Campaign(command, folder, tpu, shell)
        old = {s: signal.signal(s, campaign.stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            return supervise(campaign.start, say, restarts=restarts, retries=retries, stopped=lambda: campaign.stopping)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Campaign:
    """A run on resources that come and go."""

    def __init__(self, command: Sequence[str], folder: LaunchFolder, tpu: TpuVm, shell: Shell) -> None:
        self.command, self.folder, self.tpu, self.shell = command, folder, tpu, shell
        self.stopping = False
        self._asked = False
        self._ready = False  # Whether this launcher has set up the VMs that are there.

    def stop(self, *_: object) -> None:
        """Ends the campaign at the next moment that allows it; the run saves first."""
        self.stopping = True

    def start(self, number: int) -> End:
        """Makes what is missing, runs the command, and tells how it ended."""
        self._record(number)
        end = self._start()
        if end.outcome is Outcome.FINISHED and not self.tpu.keep:
            self.shell.check(self.tpu.resource("delete", "--force", "--quiet"))
        elif not self.shell.dry and end.outcome is not Outcome.PREEMPTED:
            say(f"the TPUs are still there; this deletes them: {shlex.join(self.tpu.resource('delete', '--force', '--quiet'))}")
        self._record(number, end)
        return end

    def _start(self) -> End:
        state = self.state()
        if state not in (None, "ACTIVE", *WAITING):
            self.shell.check(self.tpu.resource("delete", "--force", "--quiet"))
            state = None
        if state is None:
            self._ready = False
            self.shell.check(self.tpu.create())
        state = self._wait()
        if self.stopping:
            return End(Outcome.PREEMPTED, exits.RESTART, "stopped while waiting for TPUs")
        if state != "ACTIVE":
            outcome = Outcome.FAILED if state == "FAILED" else Outcome.PREEMPTED
            return End(outcome, exits.FAILED, f"the queued resource is {state or 'gone'}")
        code = 0 if self._ready else self._set_up()
        if code == 0:
            self._ready = True
            code = self._run(self.tpu.ssh(self.tpu.run_script(self.command)))
        return self._judge(code)

    def _wait(self) -> str | None:
        """Waits until the TPUs are there, or cannot come."""
        if self.shell.dry:
            self.shell.show(self.tpu.resource("describe", "--format=value(state.state)"))
            self.shell.note(f"again every {self.tpu.poll:g} s until it says ACTIVE")
            return "ACTIVE"
        while (state := self.state()) in WAITING and not self.stopping:
            self._sleep(self.tpu.poll)
        return state

    def _set_up(self) -> int:
        """Copies and installs the project. Returns gcloud's exit code."""
        if self.tpu.source is None:
            return 0
        archive = self.folder.path / f"{self.tpu.name}.tar.gz"
        self.shell.note(f"packs {len(listing(self.tpu.source))} files of {self.tpu.source}, as they are now, into {archive}")
        if not self.shell.dry:
            pack(self.tpu.source, archive)
        return self.shell.run(self.tpu.scp(str(archive))) or self.shell.run(self.tpu.ssh(self.tpu.setup_script()))

    def _run(self, argv: Sequence[str]) -> int:
        """Runs the command and passes a wish to stop on to the workers. Returns its exit code."""
        if self.shell.dry:
            return self.shell.run(argv)
        self.shell.show(argv)
        # A session of its own: Ctrl-C must reach the workers as a wish to save, not cut the connection to them.
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        while child.poll() is None:
            if self.stopping and not self._asked:
                self._asked = True
                self.shell.run(self.tpu.ssh(self.tpu.stop_script()))
            time.sleep(0.1)
        return child.returncode

    def _judge(self, code: int) -> End:
        """The meaning of gcloud's exit code, which is that of the first worker that did not end with 0."""
        outcome = judge(code)
        if outcome in (Outcome.FINISHED, Outcome.USER_ERROR):
            return End(outcome, code, "finished" if code == 0 else "the command was refused (exit code 2); its sentence is above")
        state = self.state()
        if state != "ACTIVE" or not self._nodes_are_ready():
            return End(Outcome.PREEMPTED, code, f"the TPUs were preempted (the queued resource is {state or 'gone'})")
        if code == CONNECTION_LOST:
            return End(Outcome.PREEMPTED, code, "the connection was lost")
        return End(outcome, code, f"a worker ended with exit code {code}")

    def _nodes_are_ready(self) -> bool:
        """Whether the node is in service; the queued resource takes some time to notice a preemption. Of several nodes it alone tells."""
        if self.tpu.slices > 1:
            return True
        code, state, _ = self.shell.read(["gcloud", "compute", "tpus", "tpu-vm", "describe", self.tpu.name, *self.tpu.where(), "--format=value(state)"])
        return code == 0 and state == "READY"

    def state(self) -> str | None:
        """The queued resource's state; None where there is none. Raises LaunchError where gcloud cannot tell."""
        for attempt in range(ATTEMPTS):
            code, state, error = self.shell.read(self.tpu.resource("describe", "--format=value(state.state)"))
            if code == 0:
                return state or None
            if "NOT_FOUND" in error or "not found" in error.lower():
                return None
            if attempt < ATTEMPTS - 1:
                self._sleep(self.tpu.poll)
        raise LaunchError(f"gcloud cannot tell the state of queued resource {self.tpu.name}: {error}")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.stopping:
            time.sleep(min(0.1, seconds))

    def _record(self, number: int, end: End | None = None) -> None:
        if not self.shell.dry:
            tpu = {"name": self.tpu.name, "topology": self.tpu.slice.name, "slices": self.tpu.slices, "zone": self.tpu.zone, "project": self.tpu.project}
            self.folder.write({
                "kind": "tpu-vm", "launcher": os.getpid(), "command": list(self.command), "start": number, "time": now(), "tpu": tpu,
                "outcome": end.outcome.value if end else None, "why": end.why if end else None,
            })  # fmt: skip
