"""`vimlab weights list | verify | add FILE | train DATA`: public weight files that vimlab can use, and weights of one's own."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from vimlab import weights
from vimlab.config import ConfigError


def main(argv: Sequence[str]) -> int:
    """The `weights` command; 1 where `verify` found a damaged file. Raises WeightsError."""
    parser = argparse.ArgumentParser(
        prog="vimlab weights",
        description=f"Weight files are yours to fetch; nothing is downloaded. They lie in {weights.folder()} "
        f"(the environment variable {weights.VARIABLE} names another folder).",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is known: where it is published, its licence, and whether it is here")
    commands.add_parser("verify", help="hash the files that are here again; exit code 1 if one is damaged")
    add = commands.add_parser("add", help="check a file and copy it into the weights folder")
    add.add_argument("file", nargs="+", help="a fetched file, whatever its name")
    train = commands.add_parser("train", help="train a small classifier on labelled pictures, for the extractor `trained`")
    train.add_argument("data", help="training data with classes, as config.data.train")
    train.add_argument("--out", required=True, type=pathlib.Path, help="file to write, FILE.safetensors")
    train.add_argument("--eval", help="held-out data of the same classes, to say how good it is")
    train.add_argument("--size", type=int, default=32, help="side of the pictures in pixels (32)")
    train.add_argument("--crop", choices=("center", "resize"), default="resize", help="how pictures become square (resize)")
    train.add_argument("--epochs", type=float, default=5.0, help="passes over the data (5)")
    train.add_argument("--batch", type=int, default=128, help="pictures a step (128)")
    train.add_argument("--flip", action="store_true", help="mirror half of the pictures")
    args = parser.parse_args(argv)
    if args.command == "train":
        return _train(args)
    if args.command == "verify":
        return _verify()
    if args.command == "add":
        for file in args.file:
            found = weights.add(file)
            print(f"added {found.known.id} ({found.known.what}): {found.path}")
        return 0
    print(_table())
    return 0


def _table() -> str:
    rows = [("id", "here", "licence", "what", "used for")]
    rows += [(k.id, "yes" if weights.held(k) else "no", k.licence, k.what, k.use) for k in weights.KNOWN.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    places = [f"{k.id}: {k.page}\n  → {weights.folder() / k.files[0]}" for k in weights.KNOWN.values()]
    return "\n".join([*lines, "", "Where each is published, and where to put it (or run `vimlab weights add FILE`):", *places])


def _verify() -> int:
    damaged = 0
    present = [(known, path) for known in weights.KNOWN.values() if (path := weights.held(known))]
    for known, path in present:
        try:
            print(f"{known.id}: whole, sha256 {weights.identify(path).sha256}")
        except weights.WeightsError as error:
            damaged += 1
            print(f"{known.id}: {error}")
    if not present:
        print(f"{weights.folder()} holds none of the known files; `vimlab weights list` says where they are published")
    return int(damaged > 0)


def _train(args: argparse.Namespace) -> int:
    from vimlab.data.pipeline import EvalPipeline, TrainPipeline
    from vimlab.data.sources import open_source
    from vimlab.data.transforms import Center, Resize
    from vimlab.evals import trained_features

    source, held_out = open_source(args.data), open_source(args.eval) if args.eval else None
    names = source.info.class_names
    if not names:
        raise ConfigError(f"{args.data!r} has no classes to train a classifier on")
    if held_out and held_out.info.class_names != names:
        raise ConfigError(f"the classes of {args.eval!r} are not those of {args.data!r}")
    steps, smallest = int(args.epochs * len(source)) // args.batch, trained_features.LEAST_SIZE
    if steps < 1 or args.size < smallest or args.out.suffix != ".safetensors":
        raise ConfigError(f"--epochs and --batch must make at least 1 step (now {steps}), --size be at least {smallest}, --out end in .safetensors")
    crop = Center() if args.crop == "center" else Resize(flip=args.flip)
    pipeline = TrainPipeline(source, image_size=args.size, crop=crop, batch_size=args.batch, seed=0)
    batches = ((b["image"], b["label"]) for b in pipeline.iterate())
    say = lambda done, loss: print(f"\rstep {done}/{steps}  loss {loss:.3f} ", end="", file=sys.stderr, flush=True)
    found = trained_features.train(batches, len(names), steps, progress=say)
    print(file=sys.stderr)
    facts = {"data": source.info.name, "fingerprint": source.info.fingerprint, "size": args.size, "crop": args.crop, "steps": steps}
    if held_out:
        whole = EvalPipeline(held_out, image_size=args.size, crop=Center() if args.crop == "center" else Resize(), batch_size=args.batch)
        facts["accuracy"] = trained_features.accuracy(found, ((b["image"], np.where(b["mask"] > 0, b["label"], -1)) for b in whole), len(held_out))
        print(f"accuracy on {args.eval}: {facts['accuracy']:.1%}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    trained_features.write(args.out, found, facts)
    print(f"written: {args.out} (use it with --config.evals.fid.extractor.name=trained --config.evals.fid.extractor.weights={args.out})")
    return 0
