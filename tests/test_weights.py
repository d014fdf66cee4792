"""Public weight files: found by id or path, checked by hash, copied whole, read in three formats; every mistake one sentence."""

import dataclasses
import re

import numpy as np
import pytest

from vimlab import cli, safetensors_io, weights
from vimlab.evals.extractors import Inception


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small file that stands for the published Inception's bytes."""
    path = tmp_path / "fetched.safetensors"
    safetensors_io.write(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    known = dataclasses.replace(weights.KNOWN["inception"], sha256=weights.sha256(path))
    monkeypatch.setitem(weights.KNOWN, "inception", known)
    return path


def run(capsys, *argv):
    code = cli.main(["weights", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_table_is_sound():
    assert len({k.sha256 for k in weights.KNOWN.values()}) == len({n for k in weights.KNOWN.values() for n in k.files[:1]}) == len(weights.KNOWN)
    for known in weights.KNOWN.values():
        assert re.fullmatch(r"[0-9a-f]{64}", known.sha256) and known.page.startswith("https://") and known.licence and known.use
        for digits in re.findall(r"-([0-9a-f]{8})\.pth$", " ".join(known.files)):
            assert known.sha256.startswith(digits), known.id


def test_the_folder_is_the_variable_s_or_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    assert weights.folder() == tmp_path / ".cache/vimlab/weights"
    monkeypatch.setenv(weights.VARIABLE, "~/elsewhere")
    assert weights.folder() == tmp_path / "elsewhere"


def test_add_verify_and_list(folder, published, capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0 and re.search(r"inception +no +Apache-2.0", out) and weights.KNOWN["inception"].page in out
    code, out, _ = run(capsys, "verify")
    assert code == 0 and "holds none of the known files" in out
    code, out, _ = run(capsys, "add", str(published))
    target = folder / "pt_inception-2015-12-05-6726825d.pth"
    assert code == 0 and str(target) in out and target.read_bytes() == published.read_bytes()
    assert list(folder.iterdir()) == [target]
    assert re.search(r"inception +yes", run(capsys, "list")[1])
    code, out, _ = run(capsys, "verify")
    assert code == 0 and out == f"inception: whole, sha256 {weights.sha256(published)}\n"
    target.write_bytes(target.read_bytes()[:-4])
    code, out, _ = run(capsys, "verify")
    assert code == 1 and "is damaged, or is another file of that name" in out


def test_add_refuses_what_is_not_published_and_leaves_nothing(folder, tmp_path, capsys):
    (tmp_path / "mine.pth").write_bytes(b"other weights")
    code, _, err = run(capsys, "add", str(tmp_path / "mine.pth"))
    assert code == 2 and re.search(r"mine.pth has the sha256 [0-9a-f]{16}…, which is of no file that vimlab knows", err)
    assert err.count("\n") == 1 and not list(folder.iterdir())
    code, _, err = run(capsys, "add", str(tmp_path / "absent.pth"))
    assert code == 2 and "absent.pth' does not exist" in err


def test_a_file_is_found_by_id_or_path(folder, published, tmp_path):
    weights.add(published)
    by_id, by_path = weights.locate("clip-b32", "inception"), weights.locate("inception", path=str(published))
    assert by_id.path.parent == folder and by_path.path == published
    assert by_id.known is by_path.known is weights.KNOWN["inception"] and by_id.sha256 == weights.sha256(published)


def test_absent_truncated_unknown_and_mistaken_files_are_one_sentence_each(folder, published, tmp_path):
    def fails(match, **fields):
        with pytest.raises(weights.WeightsError, match=match) as error:
            Inception(**fields).open()
        assert "\n" not in str(error.value) and ". " not in str(error.value)

    fails(r"weights folder .* lacks pt_inception-2015-12-05-6726825d.pth .*github.com/mseitzer.* run `vimlab weights add FILE`")
    fails(r"the weights 'absent.pth' do not exist; give the path of pt_inception", weights="absent.pth")
    truncated = folder / "weights-inception-2015-12-05-6726825d.pth"
    truncated.write_bytes(published.read_bytes()[:40])
    fails(r"weights-inception.* is damaged.*: its sha256 starts with .* fetch it again from https")
    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(3))
    fails(r"other.npz has the sha256 .*, which is not that of pt_inception.* allow_unknown=True", weights=str(other))
    fails("other.npz lacks Conv2d_1a_3x3.bn.weight, so it is not FID's InceptionV3", weights=str(other), allow_unknown=True)
    other.write_bytes(other.read_bytes()[:50])
    fails(r"other.npz is not a whole .npz file", weights=str(other), allow_unknown=True)
    with pytest.raises(weights.WeightsError, match="is InceptionV3 of 2015-12-05, but vgg16-397923af.pth .* is needed"):
        weights.locate("vgg16", path=published)


def test_arrays_are_read_from_three_formats(published, tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    assert weights.read(published)["a"].shape == (2, 3) and weights.read(tmp_path / "a.npz")["a"].sum() == 2
    (tmp_path / "a.pth").write_bytes(b"text")
    with pytest.raises(weights.UserError, match="a.pth is not a whole file of torch.save"):
        weights.read(tmp_path / "a.pth")
