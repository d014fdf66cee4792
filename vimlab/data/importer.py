"""Writes any source as ArrayRecord shards with a manifest: restartable, checked on the way, the same bytes every time."""

import collections
import concurrent.futures
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import vimlab
from vimlab.data.base import DataError, DecodeError, Record, Source
from vimlab.data.formats.array_record import FORMAT, pack
from vimlab.data.images import decode, encode
from vimlab.data.shards import Progress, ShardWriter, claim, partial_of, publish, sha256_of, shards_of, write_json
from vimlab.data.sources import open_splits
from vimlab.data.transforms import resize

SHARD_BYTES = 100e6  # what a shard should come to
FORMS = ("png", "webp", "jpeg")


def import_dataset(src: str, dst: str | os.PathLike, *, size: int | None = None, form: str = "png",
                   shard_records: int | None = None, threads: int = 8, max_bad: float = 0.01,
                   quiet: bool = False) -> dict[str, Any]:
    """Imports every split that `src` names into the new folder `dst`, and returns its manifest. See `write_dataset`."""
    return write_dataset(open_splits(src), dst, origin=src, size=size, form=form, shard_records=shard_records, threads=threads,
                         max_bad=max_bad, quiet=quiet)


def write_dataset(splits: Mapping[str, Source], dst: str | os.PathLike, *, origin: str, size: int | None = None,
                  form: str = "png", shard_records: int | None = None, threads: int = 8, max_bad: float = 0.01,
                  quiet: bool = False) -> dict[str, Any]:
    """Writes splits as shards and `manifest.json`, in `DST.partial` until all is there; killed, it goes on where it was.

    Every image is decoded once; those that cannot be are left out and listed in the manifest. Encoded images are stored
    as they are, unless `size` asks for another one.

    Args:
      splits: sources by the name of their split.
      origin: what the manifest says they were made from.
      size: resize the shorter side to this many pixels (never enlarging), and encode again.
      form: encoding of resized and of raw images: "png" or "webp" (both lossless), or "jpeg" (quality 95).
      shard_records: records in a shard; about 100 MB by default.
      max_bad: share of undecodable images that is put up with.

    Raises:
      DataError: `dst` exists, its partial folder belongs to another import, splits disagree on the classes, too many
        images are bad.
    """
    dst = pathlib.Path(dst)
    partial = partial_of(dst)
    classes = {source.info.class_names for source in splits.values()}
    if len(classes) > 1:
        raise DataError(f"the splits {sorted(splits)} of {origin!r} have different classes; import them one by one, "
                        f"as in {origin + '#' + next(iter(splits))!r}")
    if form not in FORMS:
        raise DataError(f"image form {form!r} is unknown; known are {sorted(FORMS)}")
    request = {"origin": origin, "size": size, "form": form, "shard_records": shard_records, "format": FORMAT,
               "sources": {name: source.info.fingerprint for name, source in splits.items()}}
    claim(partial, request, "import")
    progress = Progress(sum(map(len, splits.values())), quiet)
    entries = {}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for name, source in splits.items():
            shards = _write_split(name, source, partial, pool, progress, size, form, shard_records or _shard_records(source))
            entries[name] = _entry(shards, splits[name].info.class_names)
            bad = entries[name]["bad"]
            if len(bad) > max_bad * len(source):
                raise DataError(f"{len(bad)} of {len(source)} images of {source.info.name!r} cannot be decoded, more than "
                                f"{max_bad:.1%}, among them {', '.join(map(repr, bad[:3]))}; mend them or set --max-bad")
    progress.close()
    names = classes.pop()
    manifest = {"format": FORMAT, "name": dst.name, "vimlab": vimlab.__version__, "origin": origin, "image_size": size,
                "image_form": form if size else "original", "class_names": list(names) if names else None,
                "caption_field": "caption" if any(e["captions"] for e in entries.values()) else None,
                "sha256": sha256_of(e["sha256"] for e in entries.values()), "splits": entries}
    publish(partial, dst, manifest)
    return manifest


def _write_split(name: str, source: Source, folder: pathlib.Path, pool: concurrent.futures.Executor, progress: Progress,
                 size: int | None, form: str, shard_records: int) -> list[dict[str, Any]]:
    """Writes the shards that are not there yet. Each counts once its `.done` file, with its numbers, stands beside it."""
    shards = []
    for path, done, rows in shards_of(folder, name, len(source), shard_records):
        if done.is_file():
            progress.skip(len(rows))
        else:
            write_json(done, _write_shard(path, source, rows, pool, progress, size, form))
        shards.append(json.loads(done.read_text()))
    return shards


def _write_shard(path: pathlib.Path, source: Source, rows: range, pool: concurrent.futures.Executor, progress: Progress,
                 size: int | None, form: str) -> dict[str, Any]:
    writer, bad, labels, captions = ShardWriter(path), [], collections.Counter(), 0
    for record in pool.map(lambda i: _prepare(source, i, size, form), rows):
        progress.add()
        if "image" not in record:
            bad.append(record["key"])
            continue
        writer.write(pack(record))
        captions += bool(record.get("caption"))
        labels.update([str(record["label"])] if "label" in record else [])
    return writer.close() | {"bad": bad, "captions": captions, "labels": labels}


def _prepare(source: Source, index: int, size: int | None, form: str) -> Record:
    """The record to store; one without an image where it cannot be decoded."""
    key = f"record {index}"
    try:
        record = source[index]
        key = record["key"]
        image = decode(record["image"], key)
    except (DecodeError, OSError):
        return Record(key=key)
    if size and min(image.shape[:2]) > size:
        scale = size / min(image.shape[:2])
        image = resize(image, *(max(size, round(side * scale)) for side in image.shape[:2]))
    elif not size and isinstance(record["image"], bytes):
        return record
    return record | {"image": encode(image, form)}


def _shard_records(source: Source) -> int:
    sample = [source[i]["image"] for i in range(0, len(source), -(-len(source) // 16))]
    mean = sum(len(i) if isinstance(i, bytes) else i.nbytes for i in sample) / len(sample)
    return max(1000, min(50_000, int(SHARD_BYTES / max(mean, 1))))


def _entry(shards: Sequence[dict[str, Any]], classes: Sequence[str] | None) -> dict[str, Any]:
    """A split's part of the manifest; its hash is that of its shards' hashes, each over the shard's records in order."""
    labels = sum((collections.Counter(shard["labels"]) for shard in shards), collections.Counter())
    order = map(str, range(len(classes))) if classes else sorted(labels, key=int)
    return {"count": sum(s["count"] for s in shards), "captions": sum(s["captions"] for s in shards),
            "labels": {label: labels[label] for label in order}, "bad": [key for s in shards for key in s["bad"]],
            "sha256": sha256_of(s["sha256"] for s in shards),
            "shards": [{key: s[key] for key in ("file", "count", "sha256")} for s in shards]}
