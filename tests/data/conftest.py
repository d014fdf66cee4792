"""Small data sets, made on the fly in each format, that hold the same twelve records."""

import io
import json

import pytest
from small_sets import CLASSES, COUNT, make_tar, png


@pytest.fixture
def tars(tmp_path):
    """A folder with two tars of six records and a class table."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(2):
        make_tar(folder / f"part-{shard:05d}.tar", range(6 * shard, 6 * shard + 6))
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    """Class folders with captions beside the images; in order of path the records are 0, 3, 6, 9, 1, 4, …"""
    root = tmp_path / "pictures"
    for i in range(COUNT):
        (root / CLASSES[i % 3]).mkdir(parents=True, exist_ok=True)
        (root / CLASSES[i % 3] / f"{i:04d}.png").write_bytes(png(i))
        (root / CLASSES[i % 3] / f"{i:04d}.txt").write_text(f"caption {i}")
    return root


@pytest.fixture
def parquet(tmp_path):
    """A Parquet file as Hugging Face's `datasets` writes it: struct of bytes and path, class names in the metadata."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = pa.array([{"bytes": png(i), "path": f"{i:04d}.png"} for i in range(COUNT)],
                      pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": images, "label": [i % 3 for i in range(COUNT)], "text": [f"caption {i}" for i in range(COUNT)]})
    names = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    (tmp_path / "hf" / "data").mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}),
                   tmp_path / "hf" / "data" / "train-00000-of-00001.parquet", row_group_size=5)
    return tmp_path / "hf"


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory):
    """A TFDS data set prepared as ArrayRecord, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        """Twelve random pictures."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=list(CLASSES)), "caption": tfds.features.Text(),
                        "file_name": tfds.features.Text()}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(8)), "test": self._generate_examples(range(8, COUNT))}

        def _generate_examples(self, rows):
            for i in rows:
                yield i, {"image": io.BytesIO(png(i)), "label": i % 3, "caption": f"caption {i}", "file_name": f"{i:04d}"}

    root = tmp_path_factory.mktemp("tfds")
    TinyPictures(data_dir=root, file_format="array_record").download_and_prepare()
    return root / "tiny_pictures" / "1.0.0"
