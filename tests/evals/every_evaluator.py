"""Every evaluator of drawn and encoded pictures on a generator that nobody trained: its workdir, and the real command on it.

    python tests/evals/every_evaluator.py '{"command": ["eval", "--workdir", …], "out": …, "stop": …}'

Keys: command, of `vimlab`; out, a file for what it drew and on what; stop, shards after which it fails.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from vimlab import config as configs
from vimlab import run as runs
from vimlab.checkpoint import Checkpointer
from vimlab.cli import main
from vimlab.evals import EVALUATORS, shards
from vimlab.run import Run
from vimlab.sampling.sampler import Sampler

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import small_clip  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEP, SHARD, ROWS = 7, 6, 4
NAMES = list(dict.fromkeys(["fid", *EVALUATORS]))


def write_workdir(workdir: pathlib.Path, tokenizer: pathlib.Path, clip: pathlib.Path, classifier: pathlib.Path) -> pathlib.Path:
    """The workdir of a generator that nobody trained. Twenty-two pictures to look at: no batch of several divides them."""
    network = {"name": "trained", "weights": str(classifier)}
    scorer = configs.to_dict(small_clip.settings(clip / "model.safetensors", clip / "merges.txt"))
    rows = {"rows_per_device": ROWS}
    drawing, few = rows | {"count": 21, "guidance": 2.0, "extractor": network}, rows | {"count": 9}
    tree = configs.load(f"{ROOT}/configs/parti_shapes.py:smoke,tokenizer={tokenizer}").to_dict()
    tree["model"] |= {"depth": 1, "width": 16, "mlp": 32}
    tree["data"] |= {"train": "shapes:train?count=40", "eval": "shapes:test?count=22"}
    tree["evals"] = {
        "fid": drawing | {"memorised": 30}, "inception_score": drawing | {"splits": 2}, "rfid": {"extractor": network},
        "clip_score": few | {"scorer": scorer}, "alignment": few | {"guidance": 2.0}, "samples": few, "probe": {"count": 40},
        "reconstruction": {"pictures": 5}, "codebook": {"batch": 7}, "token_language": {}, "likelihood": {},
    }  # fmt: skip
    run = Run(runs.resolve(tree))
    run.task.write_companions(workdir)
    runs.write_json(workdir / "config.json", runs.to_dict(run.config))
    runs.write_json(workdir / "run.json", run.environment())
    with jax.set_mesh(run.mesh), Checkpointer(workdir / "checkpoints") as checkpoints:
        state = jax.jit(run.task.init, out_shardings=run.shardings)(jax.random.key(0))
        # Weights as they start give every token nearly the same logits.
        wave = lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
        checkpoints.save(STEP, state.replace(params=jax.tree.map(wave, state.params)), run.environment(), wait=True)
    return workdir


def spy(asked: dict) -> dict:
    """Lets the command look at few pictures at a time, and writes down what it draws; a KeyboardInterrupt where it is to stop."""
    seen, shards.SIZE = {"rows": set(), "draws": {}}, SHARD
    subject, draw, write, made = Run.subject, Sampler.draw, shards.Shards._write, []

    def nearer(self, state, step):
        # What nobody trained reconstructs nothing; near the real pictures, precision and recall are neither 0 nor 1.
        found = subject(self, state, step)
        reconstruct = found.predict("reconstruct")
        near = jax.jit(lambda state, images: 0.8 * images + 0.2 * reconstruct(state, images))
        return dataclasses.replace(found, predict_fns={**found.predict_fns, "reconstruct": near})

    def watched(self, conditions, seeds, knobs, *more, **options):
        sample = self._sample
        self._sample = lambda condition, seed, knobs: (seen["rows"].add(len(seed)), sample(condition, seed, knobs))[1]
        try:
            drawn = draw(self, conditions, seeds, knobs, *more, **options)
        finally:
            self._sample = sample
        for row in range(len(seeds)):
            key = f"{conditions[row].tolist()} {seeds[row]} {knobs.guidance.tolist()}"
            found = hashlib.sha256(drawn.ids[row].tobytes() + drawn.log_probs[row].tobytes() + drawn.images[row].tobytes()).hexdigest()
            assert seen["draws"].setdefault(key, found) == found, "an image is a function of its condition, seed and guidance"
        return drawn

    def stop(self, index, arrays):
        if len(made) == asked.get("stop"):
            raise KeyboardInterrupt
        made.append(index)
        write(self, index, arrays)

    Run.subject, Sampler.draw, shards.Shards._write = nearer, watched, stop
    return seen


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    seen = spy(asked)
    code = main(asked["command"])
    if code == 0 and jax.process_index() == 0:
        found = {"devices": jax.device_count(), "processes": jax.process_count(), "rows": sorted(seen["rows"]), "draws": seen["draws"]}
        pathlib.Path(asked["out"]).write_text(json.dumps(found))
    sys.exit(code)
