"""LPIPS against a torch program's stored answer; the loader against files in both of torch's formats and in safetensors."""

import pathlib
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vimlab import safetensors_io, torch_io
from vimlab.losses import perceptual
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import batch_sharding

ANSWER = pathlib.Path(__file__).parent / "lpips_answer.npz"
CONVOLUTIONS = [i for stage in perceptual.STAGES for i in stage]


@pytest.fixture(scope="module")
def drawn():
    """Weights and pictures as tools/make_lpips_answer.py draws them, in torch's layout and under torch's names."""
    rng = np.random.default_rng(int(np.load(ANSWER)["seed"]))
    named, channels = {}, 3
    for index, width in zip(CONVOLUTIONS, (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), strict=True):
        scale = np.float32(np.sqrt(2 / (9 * channels)))
        named[f"features.{index}.weight"] = rng.standard_normal((width, channels, 3, 3), dtype=np.float32) * scale
        named[f"features.{index}.bias"] = rng.standard_normal(width, dtype=np.float32) * np.float32(0.1)
        channels = width
    for k, width in enumerate(perceptual.WIDTHS):
        named[f"lin{k}.model.1.weight"] = np.abs(rng.standard_normal(width, dtype=np.float32)).reshape(1, width, 1, 1)
    images, reconstructions = (jnp.float32(rng.uniform(size=(2, 3, 48, 40))).transpose(0, 2, 3, 1) for _ in range(2))
    return named, images, reconstructions


@pytest.fixture(scope="module")
def weights(drawn):
    named = drawn[0]
    ours = {f"conv{i}.w": named[f"features.{i}.weight"].transpose(2, 3, 1, 0) for i in CONVOLUTIONS}
    ours |= {f"conv{i}.b": named[f"features.{i}.bias"] for i in CONVOLUTIONS}
    return ours | {f"head{k}": named[f"lin{k}.model.1.weight"].reshape(-1) for k in range(5)}


@pytest.fixture(scope="module")
def plausible(drawn):
    """The drawn weights with heads scaled to the published sums, which `load_weights` asks for."""
    named = dict(drawn[0])
    for k, total in enumerate(perceptual.HEAD_SUMS):
        named[f"lin{k}.model.1.weight"] = named[f"lin{k}.model.1.weight"] * np.float32(
            total / named[f"lin{k}.model.1.weight"].sum()
        )
    return named


def backbone(named):
    return {n: x for n, x in named.items() if n.startswith("features")}


def heads(named):
    return {n: x for n, x in named.items() if n.startswith("lin")}


def test_distance_and_gradient_match_the_torch_program(drawn, weights):
    _, images, reconstructions = drawn
    both = jax.jit(lambda w, a, b: (perceptual.lpips(w, a, b), jax.grad(lambda b: perceptual.lpips(w, a, b).sum())(b)))
    distance, gradient = both(weights, images, reconstructions)
    answer = np.load(ANSWER)
    np.testing.assert_allclose(distance, answer["distance"], rtol=1e-4)
    expected = answer["gradient"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient[:, ::8, ::8], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_equal_pictures_are_at_zero_with_finite_gradients(drawn, weights):
    black = jnp.zeros((1, 32, 32, 3))
    for x in (drawn[1][:1, :32, :32], black):
        distance, gradient = jax.jit(jax.value_and_grad(lambda b, w, a: perceptual.lpips(w, a, b).sum()))(x, weights, x)
        assert distance < 1e-9 and np.isfinite(gradient).all()
    # All features zero: every channel of the first layer is pushed below zero.
    dead = weights | {f"conv{i}.b": np.full_like(weights[f"conv{i}.b"], -1e3) for i in CONVOLUTIONS}
    distance, gradient = jax.jit(jax.value_and_grad(lambda b, w, a: perceptual.lpips(w, a, b).sum()))(black, dead, black + 0.5)
    assert distance == 0 and np.isfinite(gradient).all()
    assert np.isfinite(jax.grad(lambda x: perceptual._normalise(x).sum())(jnp.zeros((1, 1, 1, 4)))).all()


def test_no_gradient_flows_to_the_target(drawn, weights):
    _, images, reconstructions = drawn
    gradient = jax.jit(jax.grad(lambda a, w, b: perceptual.lpips(w, a, b).sum()))(
        images[:, :32, :32], weights, reconstructions[:, :32, :32]
    )
    assert not gradient.any()


def test_a_mesh_gives_the_same_distance_and_gradient(weights):
    """`tensor` splits the batch too, for kernels are small."""
    a, b = (jnp.float32(np.random.default_rng(seed).uniform(size=(8, 16, 16, 3))) for seed in (1, 2))
    slope = lambda w, a, b: jax.value_and_grad(lambda b: perceptual.lpips(w, a, b).sum())(b)
    expected = jax.jit(slope)(weights, a, b)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        rows = batch_sharding(mesh)
        given = jax.device_put((weights, a, b), (NamedSharding(mesh, PartitionSpec()), rows, rows))
        split = jax.jit(slope).lower(*given).compile()
        found = split(*given)
    # A convolution of one picture sums in another order than one of eight, through 13 layers; small slopes are sums that nearly cancel.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-5 * np.abs(expected[1]).max())
    assert re.search(r"f32\[1,16,16,64\]\S* (convolution|custom-call)", split.as_text()), "each of eight devices has one picture"


def test_bf16_is_near_f32(drawn, weights):
    a, b = (x[:, :32, :32] for x in drawn[1:])
    exact = jax.jit(perceptual.lpips)(weights, a, b)
    rough = jax.jit(perceptual.lpips, static_argnames="dtype")(weights, a, b, dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32 and np.abs(np.asarray(rough - exact)).max() > 0
    np.testing.assert_allclose(rough, exact, rtol=0.03)


def write_zip(path, named):
    """A file as torch.save writes it now, made by hand: a pickle that refers to storages by key."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(named))
        archive.writestr("archive/byteorder", "little")
        for key, x in enumerate(named.values()):
            archive.writestr(f"archive/data/{key}", x.tobytes())


def write_legacy(path, named, cut=0):
    """A file as torch.save wrote it before version 1.6: four pickles, then counts and storages one after the other."""
    body = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    body += pickled(named) + pickle.dumps([str(k) for k in range(len(named))], 2)
    body += b"".join(struct.pack("<q", x.size) + x.tobytes() for x in named.values())
    path.write_bytes(body[: len(body) - cut])


def pickled(named):
    """Opcodes of an OrderedDict of torch._utils._rebuild_tensor_v2 calls; written by hand, since torch is not here."""
    out = b"\x80\x02ccollections\nOrderedDict\n)R("
    number = lambda n: b"J" + struct.pack("<i", n)
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    for key, (name, x) in enumerate(named.items()):
        kind = {"f4": b"Float", "f2": b"Half"}[x.dtype.str[1:]]
        storage = (
            b"("
            + text("storage")
            + b"ctorch\n"
            + kind
            + b"Storage\n"
            + text(str(key))
            + text("cuda:0")
            + number(x.size)
            + b"tQ"
        )
        sizes = b"(" + b"".join(map(number, x.shape)) + b"t"
        strides = b"(" + b"".join(number(s // x.itemsize) for s in x.strides) + b"t"
        call = (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + number(0)
            + sizes
            + strides
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )
        out += text(name) + call
    return out + b"u."


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_two_torch_files_give_the_weights(tmp_path, plausible, write):
    write(tmp_path / "vgg16.pth", backbone(plausible) | {"classifier.0.bias": np.zeros(7, np.float32)})
    write(tmp_path / "heads.pth", heads(plausible))
    loaded = perceptual.load_weights(tmp_path / "heads.pth", tmp_path / "vgg16.pth")
    assert set(loaded) == set(perceptual.weight_shapes())
    np.testing.assert_array_equal(loaded["conv28.w"][0, 1, 2, 3], plausible["features.28.weight"][3, 2, 0, 1])
    np.testing.assert_array_equal(loaded["conv0.b"], plausible["features.0.bias"])
    np.testing.assert_array_equal(loaded["head4"], plausible["lin4.model.1.weight"][0, :, 0, 0])
    assert "heads.pth (sha256 " in perceptual.provenance(
        tmp_path / "heads.pth"
    ) and "not a known file" in perceptual.provenance(tmp_path / "heads.pth")


def test_one_safetensors_file_with_the_names_of_lpips(tmp_path, plausible):
    slices = {i: s + 1 for s, stage in enumerate(perceptual.STAGES) for i in stage}
    renamed = {f"net.slice{slices[int(n.split('.')[1])]}.{n.split('.', 1)[1]}": x for n, x in backbone(plausible).items()}
    renamed |= {f"lins.{k}.model.1.weight": x.astype(np.float16) for k, x in enumerate(heads(plausible).values())}
    safetensors_io.write(tmp_path / "lpips.safetensors", renamed)
    loaded = perceptual.load_weights(tmp_path / "lpips.safetensors")
    np.testing.assert_array_equal(loaded["conv10.w"], plausible["features.10.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_allclose(loaded["head0"], plausible["lin0.model.1.weight"].reshape(-1), rtol=1e-3)
    assert all(x.dtype == np.float32 for x in loaded.values())


def test_mistakes_are_named(tmp_path, plausible):
    def fails(match, *names):
        with pytest.raises(perceptual.PerceptualError, match=match):
            perceptual.load_weights(*(tmp_path / n for n in names))

    full, only_heads = backbone(plausible), heads(plausible)
    fails(r"missing.pth' do not exist; LPIPS needs torchvision's vgg16-397923af.pth", "missing.pth")
    write_zip(tmp_path / "heads.pth", only_heads)
    fails(r"heads.pth lack VGG16's convolutions", "heads.pth")
    safetensors_io.write(tmp_path / "vgg16.safetensors", full)
    fails(r"vgg16.safetensors lack the five linear heads", "vgg16.safetensors")
    safetensors_io.write(tmp_path / "untrained.safetensors", {n: x * ("weight" in n) for n, x in full.items()})
    fails("never trained", "untrained.safetensors", "heads.pth")
    safetensors_io.write(tmp_path / "nan.safetensors", full | {"features.0.bias": np.full(64, np.nan, np.float32)})
    fails("not finite", "nan.safetensors", "heads.pth")
    write_zip(tmp_path / "other.pth", only_heads | {"lin2.model.1.weight": only_heads["lin2.model.1.weight"] * 2})
    fails(r"head 2 in .* sums to 35.03", "vgg16.safetensors", "other.pth")
    write_zip(tmp_path / "narrow.pth", only_heads | {"lin2.model.1.weight": only_heads["lin2.model.1.weight"][:, :192]})
    fails(r"head2 in .* has shape \(1, 192, 1, 1\)", "vgg16.safetensors", "narrow.pth")
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"half a download")
    fails(r"damaged: its sha256 starts with [0-9a-f]{8}, not with the 397923af of its name", "vgg16-397923af.pth")


def test_damaged_and_unsafe_torch_files_are_refused(tmp_path, plausible):
    def fails(match, name):
        with pytest.raises(torch_io.TorchFileError, match=match):
            torch_io.read(tmp_path / name)

    write_legacy(tmp_path / "cut.pth", heads(plausible), cut=5)
    fails("cut.pth: ends 5 bytes too early", "cut.pth")
    (tmp_path / "text.pth").write_text("not weights at all")
    fails("text.pth is not a whole file of torch.save", "text.pth")
    # A pickle that would run code on loading must not.
    (tmp_path / "evil.pth").write_bytes(
        b"cos\nmkdir\n(X" + struct.pack("<I", len(str(tmp_path / "ran"))) + str(tmp_path / "ran").encode() + b"tR."
    )
    fails("holds os.mkdir, and only tensors are read", "evil.pth")
    assert not (tmp_path / "ran").exists()
    outside = {"a": np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (4, 4), (16, 4))}
    with zipfile.ZipFile(tmp_path / "outside.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled(outside))
        archive.writestr("archive/data/0", bytes(64))
    assert torch_io.read(tmp_path / "outside.pth")["a"].shape == (4, 4)
    with zipfile.ZipFile(tmp_path / "outside.pth", "w") as archive:
        archive.writestr(
            "archive/data.pkl", pickled(outside).replace(b"J" + struct.pack("<i", 4) + b"J", b"J" + struct.pack("<i", 9) + b"J")
        )
        archive.writestr("archive/data/0", bytes(64))
    fails("outside its storage", "outside.pth")


def test_python_2_parameters_of_old_torch_are_read():
    """State dicts from before version 0.4 pickle a parameter by its class and state."""
    tensor = torch_io._Tensor((np.dtype("<f4"), "0", 6), 0, (2, 3), (3, 1))
    parameter = torch_io._Tensor()
    parameter.__setstate__((tensor, None, None, True, OrderedDict()))
    np.testing.assert_array_equal(parameter.array(lambda key: np.arange(6, dtype="<f4").tobytes()), np.arange(6).reshape(2, 3))
    assert "torch" not in sys.modules
