"""vimlab's quantizer against vector-quantize-pytorch's: the same encoder, decoder, start, images, steps and schedule.

    python experiments/peer_quantizer.py --data PATH --workdir DIR --torch-python PATH [--steps N]

Trains configs/vitvq_cifar10.py with vimlab and, in torch, the benchmark's plain ViT with the library's quantizer in each of
its settings; the torch side starts from vimlab's initial weights and reads the same decoded images from a file. Both are
judged on the same held-out images, rounded to 8 bits. Finished runs are not run again. The table is printed and written to
experiments/results/peer_quantizer.{json,md}.

The torch environment: python -m venv .venv-torch && .venv-torch/bin/pip install torch==2.13.0 numpy vector-quantize-pytorch
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np

from vimlab import config as configs
from vimlab.data.pipeline import EvalPipeline
from vimlab.run import Run, resolve

HERE = pathlib.Path(__file__).resolve().parent
SETTINGS = ("rotation", "straight_through")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a CIFAR-10 source with the splits train and test")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON", str(HERE.parent / ".venv-torch/bin/python")))
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)

    config = f"{HERE.parent / 'configs/vitvq_cifar10.py'}:data={args.data}"
    values = {
        "duration": args.steps, "evals.reconstruction.every": args.steps, "evals.codebook.every": args.steps,
        "checkpoint.every": args.steps,
    }  # fmt: skip
    inputs = args.workdir / "inputs.npz"
    export(config, values, inputs)
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    ours = args.workdir / "vimlab"
    call([sys.executable, "-m", "vimlab", "train", "--config", config, "--workdir", str(ours), *flags])
    rows = {"vimlab": read(ours)}
    for setting in SETTINGS:
        out = args.workdir / f"{setting}_{args.steps}.json"
        if not out.exists():
            call([args.torch_python, str(HERE / "peer_quantizer_torch.py"), "--inputs", str(inputs), "--setting", setting,
                  "--out", str(out)])  # fmt: skip
        rows[f"vector-quantize-pytorch, {setting}"] = json.loads(out.read_text())
    table(rows, args.steps)


def call(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)


def export(config: str, values: dict[str, int], path: pathlib.Path) -> None:
    """Writes the decoded images u8[N,S,S,3] of both splits, vimlab's initial weights, and what the recipe says."""
    run = Run(resolve(configs.load(config), [(k, str(v)) for k, v in values.items()]))
    c, model = run.config, run.config.model

    def images(source):
        size = {"image_size": model.image_size, "crop": c.data.eval_crop, "batch_size": 500}
        batches = [(b["image"], b["mask"] > 0) for b in EvalPipeline(source, **size)]
        return np.concatenate([image[real] for image, real in batches])

    params = jax.jit(run.task.init)(run.root).params["tokenizer"]
    weights = {
        "/".join(["weights", *(k.key for k in key)]): np.asarray(x) for key, x in jax.tree_util.tree_leaves_with_path(params)
    }
    recipe = {
        "image_size": model.image_size, "patch": model.patch, "tower": configs.to_dict(model.encoder),
        "codes": model.quantizer.codes, "dim": model.quantizer.dim, "steps": run.total_steps, "batch_size": c.batch_size,
        "learning_rate": c.optim.learning_rate, "warmup": run.to_steps(c.optim.warmup), "final": c.optim.final, "clip": c.optim.clip, "seed": c.seed,
        "flip": c.data.crop.flip,
    }  # fmt: skip
    np.savez(path, train=images(run.train_source), test=images(run.eval_source), recipe=json.dumps(recipe), **weights)


def read(workdir: pathlib.Path) -> dict:
    """The held-out figures of the finished run."""
    records = [json.loads(path.read_text()) for path in sorted(workdir.glob("evals/*.json"))]
    found = {record["protocol"]["evaluator"]: record for record in records}
    row = {"overrides": {}, "step": found["codebook"]["protocol"]["step"], "images": found["codebook"]["protocol"]["count"]}
    row |= {key: found["codebook"]["metrics"][key] for key in ("usage", "perplexity")}
    return row | {key: found["reconstruction"]["metrics"][key] for key in ("psnr", "ssim")}


def table(rows: dict[str, dict], steps: int) -> None:
    """Prints the rows and writes them."""
    lines = [f"| quantizer ({steps} steps) | usage | perplexity | PSNR |", "| --- | --- | --- | --- |"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['usage']:.1%} | {row['perplexity']:.0f} | {row['psnr']:.2f} dB |")
    print("\n".join(lines))
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "peer_quantizer.json").write_text(json.dumps({"steps": steps, "rows": rows}, indent=1) + "\n")
    (results / "peer_quantizer.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
