"""Stands for `vimlab` in the tests of the runner: writes what a run leaves, and ends as its seed says.

Seeds below 5 finish; 5 is refused, 6 crashes, 7 is preempted at its first start, 8 waits for SIGTERM at its first start, 9 dies of a signal.
"""

import json
import os
import pathlib
import signal
import sys
import time

words = dict(zip(sys.argv[2::2], sys.argv[3::2]))  # noqa: B905
if sys.argv[1] == "launch":
    print("job 17 submitted")
    sys.exit(0)
workdir = pathlib.Path(words["--workdir"])
if sys.argv[1] == "eval":
    (workdir / "judged").touch()
    sys.exit(0)
values = dict(word.removeprefix("--config.").split("=") for word in sys.argv if word.startswith("--config."))
seed, first = int(values["seed"]), not workdir.exists()
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / "starts").open("a") as file:
    file.write(f"{os.getpid()}\n")
if seed == 5:
    print("INFO begins\nvimlab: error: seed 5 is refused; take another", file=sys.stderr)
    sys.exit(2)
if seed == 6:
    raise RuntimeError("a mistake in the program")
if seed == 7 and first:
    sys.exit(75)
if seed == 8 and first:
    signal.signal(signal.SIGTERM, lambda *_: ((workdir / "saved").touch(), os._exit(75)))
    time.sleep(60)
if seed == 9:
    os.kill(os.getpid(), signal.SIGKILL)
(workdir / "evals").mkdir(exist_ok=True)
(workdir / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "train/loss": 1 / s}) + "\n" for s in (2, 4)))
psnr = 20 + float(values.get("model.quantizer.dim", 0)) / 8 + seed
record = {"protocol": {"evaluator": "reconstruction", "step": 4, "count": 8}, "metrics": {"psnr": psnr, "l2": 0.5}, "arrays": {}}
(workdir / "evals/reconstruction_00000004.json").write_text(json.dumps(record))
