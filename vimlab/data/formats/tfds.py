"""TFDS data sets prepared as ArrayRecord, read through `tfds` without TensorFlow; images stay encoded."""

import pathlib
from typing import Any

from vimlab.data.base import CAPTION_NAMES, LABEL_NAMES, DataError, PerProcess, Record, SourceInfo, fingerprint

KEY_NAMES = ("file_name", "filename", "image/filename", "key", "id", "image_id")


class Tfds:
    """One split (TFDS's own sub-split syntax allowed) of a prepared data set, by directory or by name.

    Raises DataError where it is not there, or is not stored as ArrayRecord.
    """

    def __init__(self, where: str, split: str, data_dir: str | None = None):
        builder = _builder(where, data_dir)
        try:
            source = _open(where, split, data_dir)
        except NotImplementedError:
            raise DataError(f"TFDS data set {where!r} is not stored as ArrayRecord, which alone gives random access; "
                            "prepare it with `file_format='array_record'`") from None
        except Exception as error:
            raise DataError(f"TFDS data set {where!r} has no split {split!r}; it has {sorted(builder.info.splits)} "
                            f"({str(error).splitlines()[0][:100]})") from None
        self._source = PerProcess(_open, where, split, data_dir)
        self._fields = _fields(builder.info.features, where)
        label = self._fields["label"]
        classes = tuple(builder.info.features[label].names) if label else None
        self._size = len(source)
        name = f"{builder.info.full_name}:{split}"
        shards = [(key, whole.shard_lengths, whole.num_bytes) for key, whole in sorted(builder.info.splits.items())]
        stamp = fingerprint([name, self._size, classes, shards])
        self.info = SourceInfo(name, self._size, classes, self._fields["caption"] is not None, stamp)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._size:
            raise IndexError(index)
        example = self._source.get()[index]
        key = example[self._fields["key"]] if self._fields["key"] else f"{index:08d}"
        record = Record(key=key.decode() if isinstance(key, bytes) else str(key), image=example[self._fields["image"]])
        if self._fields["label"] and int(example[self._fields["label"]]) >= 0:
            record["label"] = int(example[self._fields["label"]])
        if self._fields["caption"]:
            caption = example[self._fields["caption"]]
            record["caption"] = caption.decode("utf-8", "replace") if isinstance(caption, bytes) else str(caption)
        return record


def split_names(where: str, data_dir: str | None = None) -> tuple[str, ...]:
    """The splits of a prepared data set."""
    return tuple(_builder(where, data_dir).info.splits)


def _builder(where: str, data_dir: str | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise DataError("reading a TFDS data set needs `pip install tensorflow-datasets` (TensorFlow is not needed)") from None
    try:
        if pathlib.Path(where, "dataset_info.json").is_file():
            return tfds.builder_from_directory(where)
        builder = tfds.builder(where, data_dir=data_dir, file_format="array_record", try_gcs=False)
    except Exception as error:
        raise DataError(f"TFDS knows no data set {where!r} ({str(error).strip().splitlines()[0][:120]})") from None
    if not builder.data_path.exists():
        raise DataError(f"TFDS data set {where!r} is not prepared in {str(builder.data_path)!r}; run "
                        f"`tfds.builder({where!r}, file_format='array_record').download_and_prepare()` once")
    return builder


def _open(where: str, split: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    builder = _builder(where, data_dir)
    image = _fields(builder.info.features, where)["image"]
    return builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})


def _fields(features: Any, where: str) -> dict[str, str | None]:
    """Which feature is the image, the label, the caption, the key."""
    import tensorflow_datasets as tfds

    kinds = {kind: [n for n in features if isinstance(features[n], kind)]
             for kind in (tfds.features.Image, tfds.features.ClassLabel, tfds.features.Text)}
    images, labels, texts = kinds.values()
    if not images:
        raise DataError(f"TFDS data set {where!r} has no image feature; it has {sorted(features)}")
    return {"image": images[0], "label": next((n for n in LABEL_NAMES if n in labels), labels[0] if labels else None),
            "caption": next((n for n in CAPTION_NAMES if n in texts), None),
            "key": next((n for n in KEY_NAMES if n in features), None)}
