"""Small programs in the place of training and of other people's executables."""

import json
import pathlib
import stat
import sys

# As training behaves: it saves and ends with 75 on SIGTERM, and finds its place among the others in the environment.
WORKER = '''
import os, pathlib, signal, sys, time

folder, act = pathlib.Path(sys.argv[1]), sys.argv[2]
me = os.environ.get("VIMLAB_PROCESS_ID", "0")
starts = folder / f"starts_{me}"

def save(*_):
    (folder / f"saved_{me}").write_text("")
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
number = len(starts.read_text())
print(f"worker {me} of {os.environ.get('VIMLAB_NUM_PROCESSES')}, start {number}", flush=True)
for clause in act.split(";"):  # "WORKER.START=DEED"; deeds without one are for all.
    who, _, deed = clause.rpartition("=")
    if who in ("", me, f"{me}.{number}", f".{number}"):
        kind, _, value = deed.partition(":")
        if kind == "exit":
            sys.exit(int(value))
        if kind == "meet":  # All have come as far.
            counts = [folder / f"starts_{i}" for i in range(int(os.environ["VIMLAB_NUM_PROCESSES"]))]
            while not all(c.exists() and len(c.read_text()) >= number for c in counts):
                time.sleep(0.02)
        if kind == "kill":
            os.kill(os.getpid(), int(value))
        if kind == "refuse":
            sys.exit(print(f"vimlab: error: {value}", file=sys.stderr) or 2)
        if kind == "sleep":
            time.sleep(float(value))
        if kind == "say":
            print(value, flush=True)
'''


def worker(folder: pathlib.Path, act: str) -> list[str]:
    """The command of a program that notes its starts in `folder` and does what `act` says."""
    program = folder / "program.py"
    program.write_text(WORKER)
    return [sys.executable, str(program), str(folder), act]


def stand_in(folder: pathlib.Path, name: str, answers: list[tuple[str, int, str, str]]) -> pathlib.Path:
    """An executable of that name that notes its arguments in `folder`/NAME.json and answers from a script.

    Args:
      folder: where it lies; to be put on PATH.
      name: of the executable.
      answers: (words that the arguments must hold, exit code, output, messages); the first unused one that fits is used up. A call that
        none fits ends with 99.
    """
    (folder / f"{name}.answers.json").write_text(json.dumps(answers))
    (folder / f"{name}.json").write_text("[]")
    program = folder / name
    program.write_text(f'''#!{sys.executable} -IS
import json, pathlib, sys
folder = pathlib.Path({str(folder)!r})
calls, script = folder / "{name}.json", folder / "{name}.answers.json"
calls.write_text(json.dumps(json.loads(calls.read_text()) + [sys.argv[1:]]))
answers = json.loads(script.read_text())
for i, (words, code, out, err) in enumerate(answers):
    if all(word in " ".join(sys.argv[1:]) for word in words.split()):
        script.write_text(json.dumps(answers[:i] + answers[i + 1:]))
        print(out)
        print(err, file=sys.stderr)
        sys.exit(code)
sys.exit(99)
''')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def calls(folder: pathlib.Path, name: str) -> list[list[str]]:
    """What a stand-in was called with."""
    return json.loads((folder / f"{name}.json").read_text())


def unused(folder: pathlib.Path, name: str) -> list:
    """The answers that a stand-in was never asked for."""
    return json.loads((folder / f"{name}.answers.json").read_text())
