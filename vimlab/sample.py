"""`vimlab sample`: images from a trained generator, each a function of its prompt and its seed, with the file that says how."""

import argparse
import hashlib
import importlib.metadata
import math
import pathlib
import shlex
import sys
import time
import typing
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vimlab
from vimlab import paths
from vimlab import run as runs
from vimlab.config import ConfigError, suggest
from vimlab.data.images import decode
from vimlab.data.prompts import read_prompts
from vimlab.data.shards import Progress
from vimlab.parallel import exchange, multihost
from vimlab.sampling.album import GRID, RECORD, Album
from vimlab.sampling.decode import Knobs, knobs
from vimlab.sampling.guidance import Schedule
from vimlab.sampling.rerank import RANKINGS, best, image_text, likelihood
from vimlab.sampling.sampler import GROUP, Drawn, Sampler, in_groups
from vimlab.scoring.scorers import SCORERS, ImageTextScorer
from vimlab.trained import Trained, open_trained

CONDITIONS = {"text": "a text", "class": "a class", "none": "nothing"}
KNOBS = ("temperature", "top_k", "top_p", "guidance", "schedule")
FLAGS = {"text": "give --prompt or --prompts", "class": "give --classes", "none": "leave out --prompt, --prompts and --classes"}


def main(argv: Sequence[str]) -> int:
    """The `sample` command."""
    args = _parser().parse_args(argv)
    with multihost.joined(args):
        return _sample(args)


def _sample(args: argparse.Namespace) -> int:
    _check(args)
    texts = [p.text for p in read_prompts(args.prompts, "--prompts")] if args.prompts else args.prompt
    image = read_image(args.image) if args.image else None
    trained = open_trained(args.workdir, args.step)
    names, conditions = conditions_of(trained, texts, args.classes)
    scorer, total = scorer_of(args, trained), len(names) * args.num
    if args.seed + total > 1 << 32:
        raise ConfigError(f"--seed is {args.seed}, but the seeds of {total:,} images must stay below 2^32; choose a smaller one")
    album = Album(args.out or args.workdir / "samples", request_of(args, trained, names, scorer), names, args.num, args.seed)
    exchange.compare("images", album.request)
    exchange.first(album.claim)

    start = time.monotonic()
    with jax.set_mesh(trained.mesh):
        drawn = draw(args, trained, np.repeat(conditions, args.num, 0), image)
        seconds, scores, kept = time.monotonic() - start, None, np.arange(total).reshape(-1, args.num)
        if args.rerank:
            rank = image_text(scorer) if scorer else likelihood(trained.predict, trained.ways)
            scores = rank(drawn.images, drawn.ids, np.repeat(conditions, args.num, 0), np.repeat(names, args.num).tolist())
            kept = best(scores, args.num, args.keep or args.num)
    if jax.process_index() == 0:
        album.write(drawn, kept, scores, environment(args))
        best_of = f", the best {kept.shape[1]} of each {args.num} by {args.rerank}" if args.rerank else ""
        print(f"{kept.size:,} images in {album.folder}{best_of}; {GRID} shows them together, {RECORD} says how they came about")
        if image is not None:
            (rows, _), size = trained.task.spec.grid, trained.task.image_size
            pixels = args.keep_rows * size // rows
            print(f"their upper {pixels} of {size} pixels, {args.keep_rows} of {rows} rows of tokens, are from {args.image}")
        print(f"{total:,} drawn in {seconds:.1f} s, compilation included: {total / seconds:.3g} images/s, {drawn.calls:,} calls of the model")
    return 0


def read_image(file: pathlib.Path) -> np.ndarray:
    """uint8[H,W,3]. Raises ConfigError where there is no file, DecodeError where it is no image."""
    if not file.is_file():
        raise ConfigError(f"--image {file} does not exist{suggest(file.name, [p.name for p in file.parent.glob('*')])}")
    return decode(file.read_bytes(), str(file))


def conditions_of(trained: Trained, texts: Sequence[str] | None, classes: str | None) -> tuple[list[str], np.ndarray]:
    """What the P prompts or classes are called, and what the model is given for them: text ids i32[P,T], or labels i32[P].

    Raises:
      ConfigError: the model takes something else, or there is no such class.
      DataError: a prompt is longer than the model reads.
    """
    takes, asked = trained.config.model.condition.NAME, "text" if texts else "class" if classes else "none"
    if asked != takes:
        raise ConfigError(f"the model of {trained.workdir} takes {CONDITIONS[takes]}, but was given {CONDITIONS[asked]}; {FLAGS[takes]}")
    if texts:
        return list(texts), np.stack([trained.task.text.encode(text, truncate=False) for text in texts])
    if not classes:
        return [""], np.zeros(1, np.int32)
    names = trained.task.info.class_names
    labels = np.array([_label(word.strip(), names) for word in classes.split(",")], np.int32)
    return [names[label] for label in labels], labels


def _label(word: str, names: Sequence[str]) -> int:
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    raise ConfigError(f"--classes: there is no class {word!r}{suggest(word, names)} (there are {len(names):,}, {names[0]!r} to {names[-1]!r}, "
                      f"or by number 0 to {len(names) - 1})")


def scorer_of(args: argparse.Namespace, trained: Trained) -> ImageTextScorer | None:
    """The network that --rerank names; None where it names none. Raises ConfigError and ClipError for what is wrong with its files."""
    if args.rerank not in SCORERS:
        return None
    if trained.config.model.condition.NAME == "none":
        raise ConfigError(f"--rerank {args.rerank} compares images with texts, but {trained.workdir} is told nothing; use --rerank likelihood")
    return SCORERS[args.rerank](weights=args.scorer_weights, vocabulary=args.scorer_vocabulary).open()


def request_of(args: argparse.Namespace, trained: Trained, names: Sequence[str], scorer: ImageTextScorer | None = None) -> dict[str, Any]:
    """All that the images depend on, as JSON values. Raises ConfigError where the model cannot do what is asked."""
    rows = trained.task.spec.grid[0]
    model = model_request(args, trained)
    if args.keep_rows is not None and not 0 < args.keep_rows < rows:
        raise ConfigError(f"--keep-rows is {args.keep_rows}, but of the {rows} rows of tokens at least 1 and at most {rows - 1} can be kept")
    image = args.image and {"file": args.image.name, "sha256": hashlib.sha256(args.image.read_bytes()).hexdigest()}
    settings = {name: getattr(args, name) for name in ("num", "keep_rows", "rerank")}
    scored = scorer.protocol() if scorer else {}
    return model | {"prompts": list(names), "image": image, **settings, "keep": args.keep or args.num, **scored}


def model_request(args: argparse.Namespace, trained: Trained) -> dict[str, Any]:
    """The model and the settings of `add_knobs`, as JSON values. Raises ConfigError for guidance that the model cannot do."""
    if args.guidance != 1 and not trained.task.guided:
        raise ConfigError(f"--guidance is {args.guidance:g}, but {trained.workdir} was trained without dropping conditions, which guidance "
                          "needs; leave it out, or train with config.drop")
    return {
        "workdir": str(paths.resolved(trained.workdir)), "step": trained.step, "dtype": jnp.dtype(runs.dtype_of(trained.config.precision)).name,
        **trained.task.identity, "condition": trained.config.model.condition.NAME, "seed": args.seed,
        **{name: getattr(args, name) for name in KNOBS}, "rows_per_device": rows_of(args),
    }  # fmt: skip


def draw(args: argparse.Namespace, trained: Trained, conditions: np.ndarray, image: np.ndarray | None) -> Drawn:
    """Draws one image for each row of `conditions`; those of `image`, uint8[H,W,3], keep its upper rows of tokens."""
    spec, total, predict = trained.task.spec, len(conditions), trained.predict
    given = keep = None
    if image is not None:
        image = trained.config.data.eval_crop(image, trained.task.image_size)[None].astype(np.float32) / 255
        ids = in_groups(lambda images: predict["encode"](images).ids, image, ways=trained.ways)[0, :, 0]
        keep = np.arange(spec.length) < args.keep_rows * spec.grid[1]
        given, keep = (np.broadcast_to(x, (total, spec.length)) for x in (ids, keep))
    progress = Progress(total, args.quiet or jax.process_index() > 0)
    drawn = sampler_of(args, trained).draw(
        conditions, args.seed + np.arange(total), knobs_of(args, trained), given, keep, progress.add
    )
    progress.close()
    return drawn


def sampler_of(args: argparse.Namespace, trained: Trained) -> Sampler:
    """Draws on all devices, `rows_of(args)` images on each at a time."""
    predict = trained.predict
    return Sampler(predict["sample"], predict["decode"], predict["complete"], rows=rows_of(args), ways=trained.ways)


def rows_of(args: argparse.Namespace) -> int:
    """Rows that each device draws at a time, however few are wanted: --batch in whole groups, so that small ones give the very same images."""
    return -(-args.batch // GROUP) * GROUP


def knobs_of(args: argparse.Namespace, trained: Trained) -> Knobs:
    """The settings of `add_knobs` as the model's decoder takes them."""
    return knobs(trained.task.spec.length, **{name: getattr(args, name) for name in KNOBS})


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What made the images and changes none, or none but by the last bits of its sums."""
    versions = {"vimlab": vimlab.__version__} | {p: importlib.metadata.version(p) for p in runs.PACKAGES}
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return versions | {"devices": devices, "command": shlex.join(["vimlab", *sys.argv[1:]])}


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for what is wrong whatever the model."""
    paths.check(args.out or args.workdir, "--out" if args.out else "--workdir")
    check_knobs(args)
    if args.keep is not None and not 1 <= args.keep <= args.num:
        raise ConfigError(f"--keep is {args.keep}, but must be at least 1 and at most --num {args.num}")
    if args.keep and not args.rerank:
        raise ConfigError("--keep is given, but nothing to choose by; add --rerank")
    if args.rerank not in SCORERS and any((args.scorer_weights, args.scorer_vocabulary)):
        raise ConfigError(f"--scorer-weights and --scorer-vocabulary are given, but nothing reads them; add --rerank {' or '.join(SCORERS)}")
    if (args.image is None) != (args.keep_rows is None):
        raise ConfigError("--image and --keep-rows belong together: the rows of which image are kept, and how many; give both or neither")


def check_knobs(args: argparse.Namespace) -> None:
    """Raises ConfigError for a setting of `add_knobs` that is wrong whatever the model."""
    rules = [
        ("num", args.num >= 1, "at least 1"),
        ("batch", args.batch >= 1, "at least 1"),
        ("seed", args.seed >= 0, "at least 0"),
        ("temperature", 0 <= args.temperature < math.inf, "finite and at least 0"),
        ("top_k", args.top_k >= 0, "at least 0, which is all"),
        ("top_p", 0 < args.top_p <= 1, "above 0 and at most 1, which is all"),
        ("guidance", 0 <= args.guidance < math.inf, "finite and at least 0"),
    ]
    for name, right, must in rules:
        if not right:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}, but must be {must}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vimlab sample", description="Draw images from a trained generator. Image n of prompt p, from 0, "
                                     "has the seed SEED + p * NUM + n; it depends on its prompt and its seed, not on what is drawn beside it.")
    parser.add_argument("--workdir", required=True, type=paths.place, help="of the generator's run")
    parser.add_argument("--out", type=paths.place, help="folder for the images (WORKDIR/samples)")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest good one if not given")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", action="append", help="a text; may be given several times")
    what.add_argument("--prompts", type=pathlib.Path, metavar="FILE", help="texts, one a line, or the column 'Prompt' of a .tsv or .csv")
    what.add_argument("--classes", help="names or numbers of classes, comma-separated")
    add_knobs(parser)
    parser.add_argument("--image", type=pathlib.Path, help="complete this image, cut as the run's evaluation cuts")
    parser.add_argument("--keep-rows", type=int, metavar="R", help="rows of tokens kept at its top; a row is as high as a patch")
    parser.add_argument("--rerank", nargs="?", const="likelihood", choices=RANKINGS, help="rank each prompt's images by a score (likelihood)")
    parser.add_argument("--scorer-weights", metavar="FILE", help="for --rerank clip: CLIP's weights (those of `vimlab weights list`)")
    parser.add_argument("--scorer-vocabulary", metavar="FILE", help="for --rerank clip: its vocabulary (that of `vimlab weights list`)")
    parser.add_argument("--keep", type=int, metavar="K", help="write only the K best of each prompt (all)")
    multihost.add_flags(parser)
    return parser


def add_knobs(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that draws: how many images, by which seeds, and how."""
    parser.add_argument("--num", type=int, default=4, help="images of each prompt or class (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image (0)")
    parser.add_argument("--batch", type=int, default=GROUP, help=f"images that each device draws at a time, in whole {GROUP}s ({GROUP}): more are "
                        "faster on accelerators, and may change an image now and then by the last bits of sums")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1 likelier tokens, at 0 always the likeliest (1)")
    parser.add_argument("--top-k", type=int, default=0, help="draw among this many likeliest tokens; 0 is all (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest tokens of this share; 1 is all (1)")
    parser.add_argument("--guidance", type=float, default=1.0, metavar="S", help="logits u + S (c - u); 1 is the model itself (1)")
    parser.add_argument("--schedule", choices=typing.get_args(Schedule), default="constant", help="how guidance rises to S (constant)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["sample", *sys.argv[1:]])
