"""Statistics files that refuse to serve for anything else; archives and references that outsiders' tools write and read."""

import io

import numpy as np
import pytest

from vimlab.config import ConfigError
from vimlab.evals import statistics
from vimlab.evals.archives import ArchiveError, ImageArchive, write_images
from vimlab.evals.frechet import Gaussian, Moments
from vimlab.evals.statistics import Statistics, StatisticsError

WANTED = {"purpose": "generation", "extractor": "inception-v3-fid", "identity": "ab" * 32}
PROTOCOL = {"data": "cifar10", "split": "train", "crop": None, "size": 32, "shape": (32, 32)}


@pytest.fixture
def known() -> Statistics:
    rows = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    sums = Moments(5)
    sums.add(rows)
    spatial = Gaussian(np.arange(3.0), np.eye(3))
    return Statistics(**WANTED, protocol=PROTOCOL, count=20, features=sums.gaussian(), spatial=spatial, rows=rows)


def test_statistics_come_back_as_they_were(known, tmp_path):
    path = tmp_path / "new/reference.npz"
    statistics.write(path, known)
    found = statistics.read(path, **WANTED, protocol={"size": 32, "shape": (32, 32)})
    assert found.protocol == PROTOCOL | {"shape": [32, 32]} and found.count == 20 and found.extractor == WANTED["extractor"]
    for mine, theirs in ((found.features, known.features), (found.spatial, known.spatial)):
        np.testing.assert_array_equal(mine.mean, theirs.mean)
        np.testing.assert_array_equal(mine.covariance, theirs.covariance)
    np.testing.assert_array_equal(found.rows, known.rows)
    assert [p.name for p in path.parent.iterdir()] == ["reference.npz"]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"purpose": "reconstruction"}, "for generation, which are of no use for reconstruction"),
        ({"extractor": "vgg16"}, "of the extractor 'inception-v3-fid', but this figure is of 'vgg16'"),
        ({"identity": "cd" * 32}, "other weights \\(abababababab…\\)"),
        ({"protocol": {"size": 64}}, "whose size is 32, but this protocol's is 64"),
        ({"protocol": {"crop": "centre"}}, "whose crop is None, but this protocol's is 'centre'"),
        ({"protocol": {"resize": "area"}}, "do not say their 'resize', which must be 'area'"),
    ],
)
def test_statistics_refuse_another_use(known, tmp_path, asked, message):
    statistics.write(tmp_path / "reference.npz", known)
    with pytest.raises(StatisticsError, match=message):
        statistics.read(tmp_path / "reference.npz", **WANTED | asked)


def test_absent_damaged_and_foreign_files(known, tmp_path):
    path = tmp_path / "reference.npz"
    with pytest.raises(StatisticsError, match="does not exist"):
        statistics.read(path, **WANTED)
    statistics.write(path, known)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(known.features.covariance.tobytes()) + 9] ^= 1
    bare = io.BytesIO()
    np.save(bare, np.zeros(3))
    for damaged in (whole[: len(whole) // 2], b"", b"no zip", bytes(flipped), bare.getvalue()):
        path.write_bytes(damaged)
        with pytest.raises(StatisticsError, match="is damaged or no .npz file"):
            statistics.read(path, **WANTED)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(StatisticsError, match="does not say what it is of"):
        statistics.read(path, **WANTED)
    np.savez(path, description=np.array('{"version": 1}'), mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(StatisticsError, match="its description does not fit"):
        statistics.read(path, **WANTED)


def test_statistics_of_no_purpose_or_of_other_rows(known):
    facts = dict(WANTED, protocol={}, count=20, features=known.features)
    with pytest.raises(ConfigError, match="must be one of"):
        Statistics(**facts | {"purpose": "training"})
    for rows in (known.rows[:, :3], known.rows[:0], np.concatenate([known.rows, known.rows])):
        with pytest.raises(ConfigError, match="20 images have 5 features each"):
            Statistics(**facts, rows=rows)


def test_pytorch_fid_and_guided_diffusion_references(known, tmp_path):
    path = tmp_path / "outside.npz"
    np.savez_compressed(path, mu=np.arange(3, dtype=np.float32), sigma=np.eye(3, dtype=np.float32))
    features, spatial = statistics.read_outside(path)
    assert features.mean.dtype == np.float64 and features.mean.tolist() == [0, 1, 2] and spatial is None
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(path, arr_0=images, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.ones(2), sigma_s=2 * np.eye(2))
    assert statistics.read_outside(path)[1].covariance.tolist() == [[2, 0], [0, 2]]
    assert ImageArchive(path).shape == (2, 4, 4, 3)
    statistics.write(path, known)  # What the others read: mu, sigma, mu_s, sigma_s.
    with np.load(path) as theirs:
        np.testing.assert_array_equal(theirs["sigma"], known.features.covariance)
        assert theirs["mu_s"].shape == (3,) and theirs["sigma_s"].shape == (3, 3)
    for arrays, message in (
        ({"arr_0": images}, "holds no statistics"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "covariance of \\(2, 2\\)"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 5], [0, 1]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "not finite"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(StatisticsError, match=message):
            statistics.read_outside(path)


def test_archives_are_numpys_and_are_read_in_any_batches(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(10, 6, 4, 3), dtype=np.uint8)
    path = tmp_path / "samples.npz"
    write_images(path, (images[i : i + 4] for i in range(0, 10, 4)), count=10, labels=np.arange(10))
    with np.load(path) as theirs:
        assert theirs.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(theirs["arr_0"], images)
        np.testing.assert_array_equal(theirs["arr_1"], np.arange(10))
    np.savez_compressed(tmp_path / "theirs.npz", images)
    for file, size in ((path, 3), (path, 100), (tmp_path / "theirs.npz", 4)):
        batches = list(ImageArchive(file).batches(size))
        assert len(batches[0]) == min(size, 10)
        np.testing.assert_array_equal(np.concatenate(batches), images)


def test_archives_that_are_refused(tmp_path):
    path, images = tmp_path / "samples.npz", np.zeros((4, 6, 4, 3), np.uint8)
    for batches, message in (
        ([images], "was to hold 5 images, but 4 came"),
        ([images, images[:1, :3]], "all images must be of one size"),
        ([images / 255.0], "must be uint8"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_images(path, batches, count=5)
    with pytest.raises(ConfigError, match="as many labels"):
        write_images(path, [images], count=4, labels=np.zeros(3, np.int64))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArchiveError, match="does not exist"):
        ImageArchive(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(ArchiveError, match="no images"):
        ImageArchive(path)
    np.savez(path, np.zeros(3))
    with pytest.raises(ArchiveError, match="float64"):
        ImageArchive(path)
    write_images(path, [images], count=4)
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="is damaged"):
        list(ImageArchive(path).batches())
    path.write_bytes(data[:200])
    with pytest.raises(ArchiveError, match="is damaged"):
        ImageArchive(path)
