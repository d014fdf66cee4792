"""Every metric of the shipped small models, each with its protocol, from workdirs that hold them trained.

    python experiments/evaluations.py --cifar-tokenizer runs/vitvq_cifar10 --vim runs/vim_cifar10 --shapes-tokenizer runs/vitvq_shapes \
        --shapes runs/parti_shapes --emoji-tokenizer demo/tokenizer --emoji demo/generator --network cifar10.safetensors

`--network` is a classifier of CIFAR-10 by `vimlab weights train PATH#train --eval PATH#test --out cifar10.safetensors --flip`; the other
sets have no classes, and are compared in the features of a fixed random network. Models that are not named are left out. Writes
experiments/results/evaluations.json, all records whole, and evaluations.md, the figures.
"""

import argparse
import json
import pathlib
import subprocess
import sys

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
# Model: its evaluators, and keys of theirs.
MODELS = {
    "cifar_tokenizer": ("reconstruction,codebook,rfid,token_language,probe", {"rfid": "network"}),
    "vim": ("likelihood,fid,is,probe", {"fid": "network", "inception_score": "network"}),
    "shapes_tokenizer": ("reconstruction,codebook,rfid,token_language", {"rfid": "random"}),
    "shapes": ("likelihood,fid", {"fid": "random"}),
    "emoji_tokenizer": ("reconstruction,codebook,rfid,token_language", {"rfid": "random"}),
    "emoji": ("likelihood,fid", {"fid": "random"}),
}
MORE = {
    "vim": ["--config.evals.fid.guidance=2", "--config.evals.inception_score.guidance=2", "--config.evals.fid.memorised=10000"],
    "shapes": ["--config.evals.fid.guidance=2", "--config.evals.fid.protocol=shapes-2k"],
    "shapes_tokenizer": ["--config.evals.rfid.protocol=shapes-rfid-2k"],
    "emoji": ["--config.evals.fid.guidance=2", "--config.evals.fid.temperature=0.6", "--config.evals.fid.protocol=emoji-32", "--config.evals.fid.memorised=1234"],
}


def main() -> int:
    """Evaluates the models that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in MODELS:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="WORKDIR")
    parser.add_argument("--network", metavar="FILE", help="the classifier of CIFAR-10")
    parser.add_argument("--cifar", metavar="PATH", help="CIFAR-10 with the splits train and test, where it has moved since the training")
    args = vars(parser.parse_args())
    records = {name: evaluate(name, args) for name in MODELS if args[name]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "evaluations.json").write_text(json.dumps(records, indent=1) + "\n")
    (RESULTS / "evaluations.md").write_text(table(records))
    print(table(records))
    return 0


def evaluate(name: str, args: dict[str, str | None]) -> dict[str, dict]:
    """The newest record of each evaluator, after `vimlab eval` has made them."""
    (evals, networks), workdir, network = MODELS[name], args[name], args["network"]
    flags = list(MORE.get(name, []))
    if args["cifar"] and name in ("cifar_tokenizer", "vim"):
        flags += [f"--config.data.train={args['cifar']}#train", f"--config.data.eval={args['cifar']}#test"]
    for evaluator, kind in networks.items():
        key = f"--config.evals.{evaluator}.extractor"
        flags += [f"{key}.name=random"] if kind == "random" else [f"{key}.name=trained", f"{key}.weights={network}"]
    subprocess.run([sys.executable, "-m", "vimlab", "eval", "--workdir", workdir, "--evals", evals, *flags], check=True)
    asked = {"inception_score" if e == "is" else e for e in evals.split(",")}
    newest = {file.name.rpartition("_")[0]: file for file in sorted((pathlib.Path(workdir) / "evals").glob("*.json"))}
    return {evaluator: {k: v for k, v in json.loads(newest[evaluator].read_text()).items() if k != "arrays"} for evaluator in sorted(asked)}


def table(records: dict[str, dict[str, dict]]) -> str:
    """Markdown: a table for each model."""
    parts = ["# The shipped small models, every metric", "", "Protocols, commands and hashes are in evaluations.json.", ""]
    for name, found in records.items():
        parts += [f"## {name.replace('_', ' ')}", "", "| evaluator | figure | value | pictures |", "| --- | --- | --- | --- |"]
        for evaluator, record in found.items():
            for metric, value in record["metrics"].items():
                shown = "not finite" if value is None else f"{value:.5g}"
                parts.append(f"| {evaluator} | {metric} | {shown} | {record['protocol']['count']} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
