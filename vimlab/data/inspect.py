"""Looks at a source before training on it: `check` reads every record, `preview` draws pictures as training sees them."""

import collections
import concurrent.futures
import hashlib
import os
import pathlib
import textwrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vimlab.data.base import DecodeError, Record, Source
from vimlab.data.formats.array_record import read_manifest
from vimlab.data.images import decode
from vimlab.data.pipeline import Crop
from vimlab.data.sources import open_splits


def check(spec: str, threads: int = 8) -> dict[str, dict[str, Any]]:
    """Reads and decodes every record of each split that a spec names.

    Returns for each split: records, bytes, height and width as [least, median, most], bad ({key: why}), labelled and
    classes ({name: records}), captions, empty_captions, words (mean of a caption), duplicates (records whose image
    bytes an earlier one, of any split checked, has too), and damaged (shards whose hash is not the manifest's).
    """
    seen: set[bytes] = set()
    reports = {}
    for split, source in open_splits(spec).items():
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            reports[split] = _report(source, pool, seen)
    folder = pathlib.Path(spec.partition("#")[0])
    if (folder / "manifest.json").is_file():
        for split, report in reports.items():
            whole = report["records"] == read_manifest(folder)["splits"][split]["count"]
            report["damaged"] = _damaged(folder, split) if whole else []
    return reports


def _report(source: Source, pool: concurrent.futures.Executor, seen: set[bytes]) -> dict[str, Any]:
    names = source.info.class_names
    shapes, bad, labels, words, counts = [], {}, collections.Counter(), [], collections.Counter()
    for key, error, shape, digest, size, record in pool.map(lambda i: _examine(source, i), range(len(source))):
        counts["bytes"] += size
        if error:
            bad[key] = error
            continue
        shapes.append(shape)
        counts["duplicates"] += digest in seen
        seen.add(digest)
        if "label" in record:
            known = names and 0 <= record["label"] < len(names)
            labels[names[record["label"]] if known else str(record["label"])] += 1
        if "caption" in record:
            words.append(len(record["caption"].split()))
    sides = np.array(shapes).reshape(-1, 2)
    spread = [[int(f(sides[:, a])) for f in (np.min, np.median, np.max)] if len(sides) else [] for a in (0, 1)]
    return {"name": source.info.name, "records": len(source), "bytes": counts["bytes"], "height": spread[0], "width": spread[1],
            "bad": bad, "labelled": labels.total(), "classes": {name: labels[name] for name in names or sorted(labels)},
            "captions": sum(n > 0 for n in words), "empty_captions": sum(n == 0 for n in words),
            "words": float(np.mean(words)) if words else 0.0, "duplicates": counts["duplicates"], "damaged": []}


def _examine(source: Source, index: int) -> tuple[str, str | None, tuple[int, int], bytes, int, Record]:
    key, size = f"record {index}", 0
    try:
        record = source[index]
        key, image = record["key"], record.pop("image")
        size = len(image) if isinstance(image, bytes) else image.nbytes
        digest = hashlib.sha256(image).digest()
        return key, None, decode(image, key).shape[:2], digest, size, record
    except (DecodeError, OSError) as error:
        return key, str(error), (0, 0), b"", size, Record(key=key)


def _damaged(folder: pathlib.Path, split: str) -> list[str]:
    """Shards whose records do not have the hash that the manifest gives."""
    from array_record.python import array_record_data_source

    damaged = []
    for shard in read_manifest(folder)["splits"][split]["shards"]:
        digest = hashlib.sha256()
        try:
            records = array_record_data_source.ArrayRecordDataSource(f"{folder / shard['file']}[0:{shard['count']}]")
            for i in range(shard["count"]):
                digest.update(records[i])
        except (RuntimeError, ValueError):
            pass
        damaged += [shard["file"]] if digest.hexdigest() != shard["sha256"] else []
    return damaged


def format_report(reports: dict[str, dict[str, Any]]) -> str:
    """What `check` found, for reading."""
    lines = []
    for split, r in reports.items():
        lines.append(f"{split}: {r['records']:,} records, {r['bytes'] / 1e6:,.1f} MB   ({r['name']})")
        if r["height"]:
            height, width = (f"{least} to {most} (median {median})" for least, median, most in (r["height"], r["width"]))
            lines.append(f"  size      height {height}, width {width}")
        if r["classes"]:
            least, most = min(r["classes"], key=r["classes"].get), max(r["classes"], key=r["classes"].get)
            lines.append(f"  classes   {len(r['classes'])} over {r['labelled']:,} records; "
                         f"least {least!r} {r['classes'][least]:,}, most {most!r} {r['classes'][most]:,}")
        else:
            lines.append("  classes   none")
        empty = f", {r['empty_captions']:,} empty" if r["empty_captions"] else ""
        lines.append(f"  captions  {r['captions']:,}, {r['words']:.1f} words on average{empty}" if r["captions"] else
                     f"  captions  none{empty}")
        if r["duplicates"]:
            lines.append(f"  repeated  {r['duplicates']:,} images have the same bytes as an earlier one")
        lines.append(f"  bad       {len(r['bad']):,}" + "".join(f"\n    {error}" for error in list(r["bad"].values())[:20]))
        lines += [f"  damaged   {file}: its records are not those that the manifest was written for" for file in r["damaged"]]
    return "\n".join(lines)


def preview(spec: str, path: str | os.PathLike, *, crop: Crop, image_size: int = 256, count: int = 24, columns: int = 6,
            seed: int = 0) -> None:
    """Writes a PNG with `count` pictures of each split a spec names, spread over it and cut by `crop`, named below."""
    pages = []
    for source in open_splits(spec).values():
        chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))
        cells = [_cell(source, int(i), crop, image_size, np.random.default_rng([seed, int(i)])) for i in chosen]
        info = source.info
        classes = f", {len(info.class_names)} classes" if info.class_names else ""
        title = f"{info.name}: {info.size:,} images{classes}{', captions' if info.has_captions else ''}; " \
                f"{len(cells)} of them, crop {crop.NAME!r} at {image_size} px"
        pages.append(_grid(cells, columns, title))
    width = max(page.width for page in pages)
    sheet = Image.new("RGB", (width, sum(page.height for page in pages)), "white")
    top = 0
    for page in pages:
        sheet.paste(page, (0, top))
        top += page.height
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _cell(source: Source, index: int, crop: Crop, size: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """The picture, enlarged to at least 160 pixels so that its name fits below, and its caption, class or key."""
    side = size * -(-160 // size)
    try:
        record = source[index]
        pixels = crop(decode(record["image"], record["key"], 2 * size), size, rng)
    except (DecodeError, OSError) as error:
        return Image.new("RGB", (side, side), (230, 200, 200)), str(error)
    names, label = source.info.class_names or (), record.get("label")
    name = record["key"] if label is None else names[label] if 0 <= label < len(names) else f"class {label}"
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.NEAREST)
    return picture, record.get("caption") or name


def _grid(cells: list[tuple[Image.Image, str]], columns: int, title: str) -> Image.Image:
    gap, font, columns = 12, ImageFont.load_default(size=15), min(columns, len(cells))
    side = cells[0][0].width
    letters = max(8, int(side / font.getlength("abcdefghijklmnopqrstuvwxyz ") * 27))
    texts = [textwrap.wrap(text, letters, max_lines=2, placeholder=" …") or [""] for _, text in cells]
    heading = textwrap.wrap(title, letters * columns)
    head, height = gap + 20 * len(heading) + gap, side + 6 + 20 * max(map(len, texts)) + gap
    sheet = Image.new("RGB", (gap + columns * (side + gap), head + -(-len(cells) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((gap, gap), "\n".join(heading), "black", font, spacing=4)
    for i, ((picture, _), lines) in enumerate(zip(cells, texts, strict=True)):
        left, top = gap + i % columns * (side + gap), head + i // columns * height
        sheet.paste(picture, (left, top))
        pen.rectangle((left - 1, top - 1, left + side, top + side), outline=(215, 215, 215))
        for row, line in enumerate(lines):
            pen.text((left + (side - font.getlength(line)) / 2, top + side + 4 + 20 * row), line, (50, 50, 50), font)
    return sheet
