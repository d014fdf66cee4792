"""`vimlab eval prompts`: the pictures of a file of prompts, as a gallery or as outsiders' benchmarks want them, and their verdicts."""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vimlab import paths, pictures
from vimlab.config import ConfigError, flatten
from vimlab.data.prompts import Prompt, digest, read_prompts
from vimlab.data.shards import Progress
from vimlab.evals.benchmarks import READERS
from vimlab.evals.evaluator import check_protocol, write_result
from vimlab.evals.gallery import GRIDS, Gallery
from vimlab.evals.prompt_folders import LAYOUTS, RECORD, Entry, check_layout, files_of, square, write_texts
from vimlab.parallel import exchange, multihost
from vimlab.sample import CONDITIONS, KNOBS, add_knobs, check_knobs, environment, knobs_of, model_request, sampler_of
from vimlab.sampling.album import claim
from vimlab.trained import Trained, open_trained

# What to run next, in the repository of each benchmark.
JUDGES = {
    "geneval": "python evaluation/evaluate_images.py {folder} --outfile {folder}/results.jsonl --model-path DETECTOR_FOLDER",
    "dpg": "PIC_NUM={num} bash dpg_bench/dist_eval.sh {folder}/images {size}",
}


def main(argv: Sequence[str]) -> int:
    """The `eval prompts` command."""
    args = _parser().parse_args(argv)
    args.out = args.out or args.workdir / "prompts" / args.layout
    paths.check(args.out, "--out")
    if args.layout in JUDGES:
        paths.refuse_bucket(args.out, "--out", f"{args.layout} judges files of this machine; give --out a folder")
    with multihost.joined(args):
        return _read(args) if args.read else _draw(args)


def _draw(args: argparse.Namespace) -> int:
    check_knobs(args)
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}, but must be at least 1")
    prompts = read_prompts(args.file)
    check_layout(args.layout, prompts, args.num)
    if args.seed + len(prompts) * args.num > 1 << 32:
        raise ConfigError(f"--seed is {args.seed}, but the seeds of {len(prompts) * args.num:,} pictures must stay below 2^32; choose a smaller one")
    trained = open_trained(args.workdir, args.step)
    request = model_request(args, trained) | {
        "file": args.file.name, "prompts": digest(prompts), "limit": args.limit, "long": args.long, "layout": args.layout, "num": args.num,
    }  # fmt: skip
    entries, left_out = entries_of(args, trained, prompts)
    exchange.compare("prompts", request)
    exchange.first(lambda: claim(args.out, RECORD, request, [file for entry in entries for file in entry.files]))
    protocol = protocol_of(args, trained, request, entries, len(prompts), left_out)
    if jax.process_index() == 0:
        write_record(args.out, request, protocol, environment(args), entries)
        write_texts(args.out, args.layout, entries)
    with jax.set_mesh(trained.mesh):
        there = draw_missing(args, trained, entries)
    if jax.process_index() == 0:
        _tell(args, trained, entries, there, protocol)
    return 0


def entries_of(args: argparse.Namespace, trained: Trained, prompts: Sequence[Prompt]) -> tuple[list[Entry], int]:
    """The prompts to draw, `args.limit` of them evenly spaced over the file; and how many were too long and left out.

    Raises:
      ConfigError: the model takes no text, or some prompts are longer than it reads and `args.long` does not say what to do.
    """
    text, takes = trained.task.text, trained.config.model.condition.NAME
    if takes != "text":
        raise ConfigError(f"the model of {trained.workdir} takes {CONDITIONS[takes]}, not a text; give the workdir of a text-to-image generator")
    counts = [text.count(p.text) for p in prompts]
    long = sum(count > text.length for count in counts)
    if long and not args.long:
        raise ConfigError(f"--file {args.file}: {long:,} of {len(prompts):,} prompts have more than the {text.length - 1} tokens that the model "
                          f"of {trained.workdir} reads (up to {max(counts) - 1:,}); add --skip-long to leave them out, or --truncate to cut them")
    rows = [row for row, count in enumerate(counts) if count <= text.length or args.long == "truncate"]
    if not rows:
        raise ConfigError(f"--file {args.file}: all {len(prompts):,} prompts are longer than the {text.length - 1} tokens that the model reads")
    limit = min(args.limit or len(rows), len(rows))
    entries = []
    for row in (rows[i * len(rows) // limit] for i in range(limit)):
        read = text.decode(text.encode(prompts[row].text)) if counts[row] > text.length else ""
        seeds = tuple(range(args.seed + row * args.num, args.seed + (row + 1) * args.num))
        entries.append(Entry(row, prompts[row], files_of(args.layout, row, prompts[row], args.num), seeds, read))
    return entries, len(prompts) - len(rows)


def protocol_of(
    args: argparse.Namespace, trained: Trained, request: dict[str, Any], entries: Sequence[Entry], total: int, left_out: int
) -> dict[str, Any]:
    """All that fixes a figure on these pictures but its judge; `total` prompts are in the file, and too long `left_out` of them."""
    some = f"{len(entries):,} of {total:,}" if len(entries) < total else f"all {total:,}"
    protocol = {
        "data": args.file.name, "fingerprint": request["prompts"], "split": f"{some} prompts", "crop": "none", "size": trained.task.image_size,
        "dtype": request["dtype"], "parameters": "average" if trained.config.ema else "trained", "identity": trained.task.identity,
        "sampler": {name: request[name] for name in (*KNOBS, "rows_per_device")}, "pictures_per_prompt": args.num, "seed": args.seed,
        "seeds": "seed + row of the prompt * pictures_per_prompt + picture",
        "too_long_left_out": left_out, "too_long_cut": sum(bool(e.read) for e in entries),
        "command": shlex.join(["vimlab", *sys.argv[1:]]),
    }  # fmt: skip
    check_protocol(protocol)
    return protocol


def write_record(
    folder: paths.Path, request: dict[str, Any], protocol: dict[str, Any], made: dict[str, Any], entries: Sequence[Entry]
) -> None:
    """Says how the pictures come about before the first is there, so that what is there can be trusted after an interruption."""
    head = json.dumps({"request": request, "protocol": protocol, "made": made}, indent=1)
    rows = [{"row": e.row, "prompt": e.prompt.text, "read": e.read or e.prompt.text, "files": e.files, "seeds": e.seeds} for e in entries]
    images = ",\n  ".join(json.dumps(row) for row in rows)
    pictures.write_whole(folder / RECORD, f'{head[:-2]},\n "images": [\n  {images}\n ]\n}}\n'.encode())


def draw_missing(args: argparse.Namespace, trained: Trained, entries: Sequence[Entry]) -> int:
    """Draws the pictures whose files are not there. Returns how many were there."""
    shares = len(entries[0].seeds) // len(entries[0].files)  # Pictures in a file.
    jobs = [(e, file, e.seeds[i * shares : (i + 1) * shares]) for e in entries for i, file in enumerate(e.files)]
    # All draw together, whatever each finds on its own disk.
    missing = exchange.first(lambda: [not (args.out / file).is_file() for _, file, _ in jobs])
    todo = [job for job, absent in zip(jobs, missing, strict=True) if absent]
    progress = Progress(len(jobs) * shares, args.quiet or jax.process_index() > 0)
    progress.skip((len(jobs) - len(todo)) * shares)
    if not todo:  # Then no weights need be read.
        progress.close()
        return len(jobs) * shares
    sampler, knobs = sampler_of(args, trained), knobs_of(args, trained)
    step = sampler.size // shares  # Files that are drawn before they are written; a call holds whole ones.
    for first in range(0, len(todo), step):
        part = todo[first : first + step]
        conditions = np.stack([trained.task.text.encode(entry.prompt.text) for entry, _, _ in part]).repeat(shares, 0)
        drawn = sampler.draw(conditions, np.concatenate([seeds for *_, seeds in part]), knobs, progress=progress.add)
        for (_, file, _), shown in zip(part, drawn.images.reshape(len(part), shares, *drawn.images.shape[1:]), strict=True):
            if jax.process_index() == 0:
                pictures.save_png(args.out / file, square(shown))
    progress.close()
    return (len(jobs) - len(todo)) * shares


def _tell(args: argparse.Namespace, trained: Trained, entries: Sequence[Entry], there: int, protocol: dict[str, Any]) -> None:
    """Writes the gallery where one is asked for, and says what lies where and what to do next."""
    again = f", {there:,} of which were there already" if there else ""
    print(f"{len(entries) * args.num:,} pictures of {len(entries):,} prompts in {args.out}{again}; {RECORD} says how they came about")
    most = trained.task.text.length - 1
    if left_out := protocol["too_long_left_out"]:
        print(f"{left_out:,} prompts of the file have more than the {most} tokens that the model reads, and were left out")
    if cut := protocol["too_long_cut"]:
        print(f"{cut:,} prompts were cut to the {most} tokens that the model reads")
    if args.layout == "gallery":
        about = f"guidance {args.guidance:g}, temperature {args.temperature:g}"
        facts = [f"{paths.resolved(args.workdir).name}, step {trained.step:,}", f"{trained.task.image_size} px", about, protocol["split"]]
        shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in flatten(protocol | environment(args)).items()}
        page, *grids = Gallery(args.out, args.file.stem, facts, entries, shown).write()
        print(f"gallery: {page} ({paths.size(page) / 1e6:.1f} MB); {len(grids):,} pictures by category in {args.out / GRIDS}")
    if args.layout in JUDGES:
        judge = JUDGES[args.layout].format(folder=paths.resolved(args.out), num=args.num, size=trained.task.image_size)
        print(f"judge them with {judge}\nthen: vimlab eval prompts --workdir {args.workdir} --out {args.out} --layout {args.layout} --read RESULTS")


def _read(args: argparse.Namespace) -> int:
    """Takes over a benchmark's verdict on the pictures of a folder."""
    if args.layout not in READERS:
        raise ConfigError(f"--read needs the --layout of the benchmark that judged: {' or '.join(READERS)}")
    try:
        record = json.loads((args.out / RECORD).read_bytes())
        request, protocol, images = (record[key] for key in ("request", "protocol", "images"))
        drawn_as, step, drawer = (request[key] for key in ("layout", "step", "workdir"))
    except OSError:
        raise ConfigError(f"{args.out} holds no {RECORD}; give --out the folder that was judged, which `vimlab eval prompts` wrote") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{args.out / RECORD} is not one of ours; give --out the folder that was judged") from None
    if drawn_as != args.layout:
        raise ConfigError(f"{args.out} was drawn for --layout {drawn_as}, not {args.layout}; give --out the folder that was judged")
    workdir = paths.resolved(args.workdir)
    # A workdir may have been moved, with what lies in it.
    if paths.place(drawer) != workdir and workdir not in paths.resolved(args.out).parents:
        raise ConfigError(f"{args.out} was drawn by {drawer}, not by {args.workdir}; give that as --workdir")
    result = READERS[args.layout](args.read, images)
    path = write_result(args.workdir, args.layout, step, protocol, result)
    width = max(map(len, result.metrics))
    print("\n".join(f"{name:{width}}  {value:.4f}" for name, value in result.metrics.items()))
    print(f"{result.protocol['benchmark']} on {result.protocol['count']:,} pictures of {result.protocol['prompts']:,} prompts, step {step:,}: {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vimlab eval prompts", description="Draw a file of prompts; run it again to go on where it was interrupted. Picture n of row r of "
        "the file, from 0, has the seed SEED + r * NUM + n, whatever is drawn beside it.",
    )  # fmt: skip
    parser.add_argument("--workdir", required=True, type=paths.place, help="of the generator's run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--file", type=pathlib.Path, help="PartiPrompts.tsv or another .tsv or .csv with a column 'Prompt', GenEval's .jsonl, "
                      "DPG-Bench's folder of .txt or its .csv, or a text file with a prompt a line")
    what.add_argument("--read", type=pathlib.Path, metavar="RESULTS", help="instead: what GenEval or DPG-Bench (--layout) found in --out; "
                      "written into WORKDIR/evals")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="gallery.html with pictures; folders as GenEval or DPG-Bench "
                        "want them; or flat, just pictures (gallery)")
    parser.add_argument("--out", type=paths.place, metavar="DIR", help="folder for the pictures (WORKDIR/prompts/LAYOUT)")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest good one if not given")
    parser.add_argument("--limit", type=int, metavar="N", help="only N prompts, evenly spaced over the file (all)")
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--skip-long", dest="long", action="store_const", const="skip", help="leave out prompts longer than the model reads")
    long.add_argument("--truncate", dest="long", action="store_const", const="truncate", help="cut them, and say so in the gallery")
    multihost.add_flags(parser)
    add_knobs(parser)
    return parser


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["eval", "prompts", *sys.argv[1:]])
