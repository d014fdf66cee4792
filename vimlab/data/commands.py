"""`vimlab data import SRC DST | check SRC | preview SRC OUT.png | vocab SRC OUT.model`: what a source holds, and fast forms of it."""

import argparse
import itertools
import typing

import numpy as np

from vimlab.data import sources
from vimlab.data.importer import FORMS, import_dataset
from vimlab.data.inspect import check, format_report, preview
from vimlab.data.text import LENGTH, Kind, SentencePiece, captions_of, train_vocabulary
from vimlab.data.transforms import Center, Generator, Resize, Tokenizer

CROPS = {policy.NAME: policy for policy in (Tokenizer, Generator, Center, Resize)}


def main(argv: list[str]) -> int:
    """Runs one data command; 1 where `check` found something bad. Raises DataError with one sentence on mistakes."""
    args = _parser().parse_args(argv)
    if args.command == "import":
        manifest = import_dataset(args.src, args.dst, size=args.size, form=args.form, shard_records=args.shard_records,
                                  threads=args.threads, max_bad=args.max_bad)
        for split, entry in manifest["splits"].items():
            left_out = f", {len(entry['bad'])} undecodable left out: {', '.join(entry['bad'][:5])}" if entry["bad"] else ""
            print(f"{split}: {entry['count']:,} records in {len(entry['shards'])} shards{left_out}")
        classes = f"{len(manifest['class_names'])} classes" if manifest["class_names"] else "no classes"
        print(classes, "and captions" if manifest["caption_field"] else "and no captions")
        print(f"sha256 {manifest['sha256']}\nread it as {args.dst + '#' + next(iter(manifest['splits']))!r}")
        return 0
    if args.command == "check":
        reports = check(args.src, threads=args.threads)
        print(format_report(reports))
        return int(any(report["bad"] or report["damaged"] for report in reports.values()))
    if args.command == "vocab":
        _vocab(args)
        return 0
    preview(args.src, args.out, crop=CROPS[args.crop](), image_size=args.size, count=args.count, columns=args.columns,
            seed=args.seed)
    print(f"wrote {args.out}")
    return 0


def _vocab(args: argparse.Namespace) -> None:
    # One pass over the source serves both, and begins only once it is known that the file may be written.
    learned, measured = itertools.tee(captions_of(sources.open_source(args.src)))
    train_vocabulary(learned, args.out, size=args.size, kind=args.kind)
    tokenizer = SentencePiece(vocabulary=args.out).open()
    counts = np.array([tokenizer.count(caption) for caption in measured])
    median, most, longest = np.quantile(counts, [0.5, 0.99, 1], method="higher")
    print(f"{len(counts):,} captions read; wrote {args.out}, a {args.kind} vocabulary of {tokenizer.size:,} ids\n"
          f"tokens in a caption with its end: median {median}, 99th percentile {most}, longest {longest}; "
          f"{np.sum(counts > LENGTH):,} are longer than {LENGTH}")


def _parser() -> argparse.ArgumentParser:
    kinds = sources.__doc__.partition("\n\n")[2]
    parser = argparse.ArgumentParser("vimlab data", description="Looks at data and imports it.",
                                     epilog="SRC is one of\n\n" + kinds, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("import", help="write any source as ArrayRecord shards with a manifest")
    convert.add_argument("src")
    convert.add_argument("dst", help="a new folder; an import that was interrupted goes on there")
    convert.add_argument("--size", type=_positive, help="resize the shorter side to this many pixels (never enlarging)")
    convert.add_argument("--form", choices=sorted(FORMS), default="png", help="encoding of what has to be encoded (png)")
    convert.add_argument("--shard-records", type=_positive, help="records in a shard (by default about 100 MB)")
    convert.add_argument("--max-bad", type=float, default=0.01, help="share of undecodable images to put up with (0.01)")
    look = commands.add_parser("check", help="read every record and report sizes, classes, captions and bad images")
    look.add_argument("src")
    for command in (convert, look):
        command.add_argument("--threads", type=_positive, default=8)
    draw = commands.add_parser("preview", help="write a labelled grid of pictures as training sees them")
    draw.add_argument("src")
    draw.add_argument("out", help="a PNG")
    draw.add_argument("--crop", choices=sorted(CROPS), default=Tokenizer.NAME)
    draw.add_argument("--size", type=_positive, default=256, help="side of a picture in pixels (256)")
    draw.add_argument("--count", type=_positive, default=24)
    draw.add_argument("--columns", type=_positive, default=6)
    draw.add_argument("--seed", type=int, default=0)
    vocab = commands.add_parser("vocab", help="train a text vocabulary on the captions and report their lengths in tokens")
    vocab.add_argument("src")
    vocab.add_argument("out", help="a new SentencePiece model file")
    vocab.add_argument("--size", type=_positive, default=16000, help="number of ids (16000)")
    vocab.add_argument("--kind", choices=typing.get_args(Kind), default="bpe", help="SentencePiece's model type (bpe)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
