"""Every evaluator of drawn and encoded pictures on a generator that nobody trained, as one process of one or several.

    python tests/evals/every_evaluator.py '{"workdir": …, "tokenizer": …, "batch": …, …}'

Keys: workdir; tokenizer, of an export; clip and classifier, of small weights; batch; out, the file for all figures; address, processes
and process where there are several; stop, shards after which it fails in its first evaluation.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from vimlab import config as configs
from vimlab import run as runs
from vimlab.evals import EVALUATORS, evaluate, shards
from vimlab.run import Run

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import small_clip  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


def config_of(asked: dict) -> dict:
    """Twenty-two pictures to look at: no batch of several divides them."""
    network, clip = {"name": "trained", "weights": asked["classifier"]}, pathlib.Path(asked["clip"])
    scorer = configs.to_dict(small_clip.settings(clip / "model.safetensors", clip / "merges.txt"))
    drawing = {"count": 21, "guidance": 2.0, "extractor": network}
    files = {"write_reference": f"{asked['workdir']}/reference.npz", "pictures": f"{asked['workdir']}/drawn.npz"}
    tree = configs.load(f"{ROOT}/configs/parti_shapes.py:smoke,tokenizer={asked['tokenizer']}").to_dict()
    tree["model"] |= {"depth": 1, "width": 16, "mlp": 32}
    tree["data"] |= {"train": "shapes:train?count=40", "eval": "shapes:test?count=22"}
    tree["evals"] = {
        "fid": drawing | files | {"memorised": 30},
        "inception_score": drawing | {"splits": 2}, "rfid": {"extractor": network}, "clip_score": {"count": 9, "scorer": scorer},
        "alignment": {"count": 9, "guidance": 2.0}, "samples": {"count": 9}, "probe": {"count": 40}, "reconstruction": {"pictures": 5},
        "codebook": {"batch": 7}, "token_language": {}, "likelihood": {},
    }  # fmt: skip
    return tree


def main(asked: dict) -> None:
    """Evaluates, or raises KeyboardInterrupt where it was told to stop."""
    if "address" in asked:
        jax.distributed.initialize(asked["address"], asked["processes"], asked["process"])
    workdir = pathlib.Path(asked["workdir"])
    run = Run(runs.resolve(config_of(asked)), training=False)
    shards.SIZE = 6
    if "stop" in asked:
        write, made = shards.Shards._write, []

        def stop(self, index, arrays):
            if len(made) == asked["stop"]:
                raise KeyboardInterrupt
            made.append(index)
            write(self, index, arrays)

        shards.Shards._write = stop
    with jax.set_mesh(run.mesh):
        state = jax.jit(run.task.init, out_shardings=run.shardings)(jax.random.key(0))
        # Weights as they start give every token nearly the same logits.
        wave = lambda x: x + 0.3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
        subject = run.subject(state.replace(params=jax.tree.map(wave, state.params)), 7, asked["batch"])
        reconstruct = subject.predict("reconstruct")
        # What nobody trained reconstructs nothing; near the real pictures, precision and recall are neither 0 nor 1.
        near = jax.jit(lambda state, images: 0.8 * images + 0.2 * reconstruct(state, images))
        subject = dataclasses.replace(subject, predict_fns={**subject.predict_fns, "reconstruct": near})
        figures = evaluate(run.config.evals.named(["fid", *EVALUATORS]), subject, workdir)
    if jax.process_index() == 0:
        pathlib.Path(asked["out"]).write_text(json.dumps({"devices": jax.device_count(), "processes": jax.process_count(), "figures": figures}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
