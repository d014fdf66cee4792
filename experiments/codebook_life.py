"""What keeps a codebook alive: the recipe as printed, re-seeding and when it ends, other estimators, dimensions, terms.

    python experiments/codebook_life.py --data PATH --workdir DIR [--steps 600] [--only PATTERN]

Each trial is an ordinary `vimlab train` command on configs/vitvq_cifar10.py, printed before it runs; a finished trial is
not run again. The table of held-out figures is printed and written to experiments/results/codebook_life.{json,md}, where
the trials of earlier calls stay.
"""

import argparse
import fnmatch
import json
import pathlib
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results/codebook_life.json"
NO_RESEED = {"reseed": "none"}
EVERY_25 = {"reseed.every": "25"}
PLAIN = {"model.quantizer.normalize": "false", "model.quantizer.layer_norm": "false"}
TRIALS = {
    "recipe": NO_RESEED,
    "reseed_25": EVERY_25,
    "reseed_25_to_end": EVERY_25 | {"reseed.until": "100 percent"},
    "reseed_25_to_half": EVERY_25 | {"reseed.until": "50 percent"},
    "reseed_5": {"reseed.every": "5"},
    "reseed_100": {"reseed.every": "100"},
    "data_init_only": {"reseed.until": "1 steps"},
    "linear_bank": NO_RESEED | {"model.quantizer.bank": "linear"},
    "rotation": NO_RESEED | {"model.quantizer.estimator": "rotation"},
    "rotation_reseed": EVERY_25 | {"model.quantizer.estimator": "rotation"},
    "entropy_0.1": NO_RESEED | {"model.quantizer.entropy": "0.1"},
    "entropy_0.01_reseed": EVERY_25 | {"model.quantizer.entropy": "0.01"},
    "sum_reseed": EVERY_25 | {"model.quantizer.reduction": "sum"},
    "dim8_recipe": NO_RESEED | {"model.quantizer.dim": "8"},
    "dim8_reseed": EVERY_25 | {"model.quantizer.dim": "8"},
    "dim16_reseed": EVERY_25 | {"model.quantizer.dim": "16"},
    "plain_l2_dim64": NO_RESEED | PLAIN | {"model.quantizer.dim": "64"},
    "plain_l2_dim64_reseed": EVERY_25 | PLAIN | {"model.quantizer.dim": "64"},
}
# What the trials share beside the config: the learning rate at which they were compared.
COMMON = {"optim.learning_rate": "0.001"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a CIFAR-10 source with the splits train and test")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", default="*")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override for every trial")
    args = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = {name: row for name, row in rows.items() if row["step"] == args.steps}
    for name, overrides in TRIALS.items():
        workdir = args.workdir / name
        if fnmatch.fnmatch(name, args.only):
            values = {"duration": args.steps, "evals.reconstruction.every": args.steps, "evals.codebook.every": args.steps,
                      "checkpoint.every": args.steps} | COMMON | overrides
            flags = [f"--config.{key}={value}" for key, value in values.items()] + [f"--config.{item}" for item in args.set]
            config = f"{HERE.parent / 'configs/vitvq_cifar10.py'}:data={args.data}"
            command = [sys.executable, "-m", "vimlab", "train", "--config", config, "--workdir", str(workdir), *flags]
            print(shlex.join(command), flush=True)
            subprocess.run(command, check=True)
        row = read(workdir, overrides)
        if row:
            rows[name] = row
    table(rows, args.steps)


def read(workdir: pathlib.Path, overrides: dict[str, str]) -> dict | None:
    """The held-out figures of a finished trial."""
    results = sorted(workdir.glob("evals/*.json"))
    if not results:
        return None
    found = {json.loads(p.read_text())["protocol"]["evaluator"]: json.loads(p.read_text()) for p in results}
    row = {"overrides": overrides, "step": found["codebook"]["protocol"]["step"], "images": found["codebook"]["protocol"]["count"]}
    row |= {key: found["codebook"]["metrics"][key] for key in ("usage", "perplexity")}
    return row | {key: found["reconstruction"]["metrics"][key] for key in ("psnr", "ssim")}


def table(rows: dict[str, dict], steps: int) -> None:
    """Prints the rows, best PSNR first, and writes them."""
    lines = [f"| trial ({steps} steps) | usage | perplexity | PSNR | SSIM |", "| --- | --- | --- | --- | --- |"]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["psnr"]):
        lines.append(f"| {name} | {row['usage']:.1%} | {row['perplexity']:.0f} | {row['psnr']:.2f} dB | {row['ssim']:.3f} |")
    print("\n".join(lines))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
