"""Known answers for CLIP: towers of random weights by `transformers`, ids by its CLIPTokenizer, a TorchScript archive by torch.

    python tools/known_answers/clip.py make    # where torch, transformers, tokenizers and Pillow are installed
    python tools/known_answers/clip.py check   # where the project is

`make` writes tests/known_answers/clip.npz, and beside it, in the folder for temporary files, towers of ViT-B/32's true size with
their answers, which are too large to keep; `check` compares those too where they are. With CLIP_VOCABULARY set to OpenAI's
bpe_simple_vocab_16e6.txt.gz both also treat texts with the true vocabulary.
"""

import io
import json
import os
import pathlib
import sys
import tarfile
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
ANSWERS = ROOT / "tests/known_answers/clip.npz"
LARGE = pathlib.Path(tempfile.gettempdir()) / "vimlab-known-answers-clip"
DATA = ROOT / "../shared/data"
ABOUT = "CLIP's towers, small and of ViT-B/32's size, its ids, and TorchScript archives, against transformers and torch"
PACKAGES, TOLERANCE = ("torch", "transformers", "tokenizers"), 1e-4
SMALL_HEAD = 16
MERGES = 300
TEXTS = [
    "a red square above a small green circle",
    "A  Photo\tof\n a CAT.",
    "it's the dog's, they'll say; we've, I'm, you're, he'd, don't",
    "Une École à Zürich, façade ñandú Ångström",
    "e\u0301cole in two code points",
    "日本語のテキスト と 한국어",
    "Привет, мир! ΟΔΥΣΣΕΥΣ İstanbul ßtraße",
    "مرحبا بالعالم हिन्दी ไทย",
    "1234 ½ ² Ⅳ ٣ 3.14e-5",
    "emoji 🐈‍⬛🚀👩🏽‍🚀!!! :-) (c)©®™",
    "under_score a-b --- '' \"'s\" ''' !'s",
    "<|endoftext|> typed by hand <|STARTOFTEXT|>",
    "no\u00a0break\u2003space\u200bzero width\x1cseparator",
    "“curly” ‘quotes’ it’s &amp; &lt;b&gt;",
    "",
    "   ",
    "word " * 100,
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
]


def pictures() -> list[np.ndarray]:
    """Pictures uint8[H,W,3], one upright, one wide, and two small squares: Noto Emoji (Apache-2.0), for the file is part of the project."""
    from PIL import Image

    sizes, found = [(40, 61), (57, 33), (32, 32), (20, 20)], []
    with tarfile.open(next((DATA / "emoji").glob("*.tar"))) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".png"))
        for name, size in zip(names[:: len(names) // len(sizes)], sizes, strict=False):
            image = Image.open(archive.extractfile(name)).convert("RGBA")
            found.append(np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").resize(size)))
    return found


def inputs(data: pathlib.Path) -> dict[str, np.ndarray]:
    """Nothing: `theirs` takes the pictures itself."""
    return {}


def theirs(inputs: dict[str, np.ndarray], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Torch's answers, all of them made anew in a folder."""
    make(folder / "clip.npz", folder)
    return expected(folder / "clip.npz", folder)


def ours(inputs: dict[str, np.ndarray], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The project's answers in the same folder."""
    return found(folder / "clip.npz", folder)


def make(path: str | os.PathLike, large: pathlib.Path = LARGE) -> None:
    """Writes the answers, those of the true size into the folder `large`."""
    import torch

    sys.path.insert(0, str(ROOT / "tools"))
    from known_answers import declare_operators

    declare_operators()
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    vocabulary, merges = tiny_vocabulary()
    ids = tokenize(vocabulary, merges, TEXTS)
    model = random_clip(small | dict(patch_size=8, image_size=32), small | dict(vocab_size=len(vocabulary)), 24)
    images = pictures()
    answers = {f"picture{i}": x for i, x in enumerate(images)}
    answers |= {f"weights/{name}": x.numpy().astype(np.float16) for name, x in model.state_dict().items() if "position_ids" not in name}
    answers["image_features"] = embed_images(model, images, 32)
    answers["text_features"] = embed_texts(model, ids)
    answers |= {"ids": ids, "merges": np.array([" ".join(m) for m in merges]), "texts": np.array(json.dumps(TEXTS))}
    if os.environ.get("CLIP_VOCABULARY"):
        answers["true_ids"] = tokenize(*true_vocabulary(os.environ["CLIP_VOCABULARY"]), TEXTS)
    answers["torchscript"], expected = torchscript()
    answers |= {f"script/{name}": x for name, x in expected.items()}
    pathlib.Path(path).parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **answers)

    base = dict(num_hidden_layers=12)
    true = random_clip(
        base | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, patch_size=32, image_size=224),
        base | dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8), 512,
    )  # fmt: skip
    large.mkdir(exist_ok=True)
    ids = np.zeros((2, 77), np.int64)
    ids[0, :6], ids[1, :] = [49406, 320, 2368, 539, 320, 49407], [49406, *range(1000, 1075), 49407]
    torch.save(true.state_dict(), large / "pytorch_model.bin")
    np.savez(large / "answers.npz", ids=ids, image_features=embed_images(true, images, 224), text_features=embed_texts(true, ids))


def random_clip(vision: dict, text: dict, projection: int):
    """A CLIP with weights that are multiples of f16's steps, none of them zero."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(7)
    ends = dict(eos_token_id=text.get("vocab_size", 49408) - 1, bos_token_id=text.get("vocab_size", 49408) - 2)
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text | ends, projection_dim=projection)).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            random = torch.randn(x.shape)
            # Matrices keep the size of what they read, more or less; norms stay near the identity.
            random = random * 1.5 * x[0].numel() ** -0.5 if x.ndim > 1 else random * 0.3 + name.endswith("weight")
            x.copy_(random.half().float())
    return model


def embed_images(model, images, size: int) -> np.ndarray:
    import torch
    from PIL import Image

    prepared = []
    for image in images:
        short = min(image.shape[:2])
        width, height = (size * side // short for side in (image.shape[1], image.shape[0]))
        whole = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        prepared.append(np.asarray(whole.crop((left, top, left + size, top + size)), np.float64) / 255)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.from_numpy(((np.stack(prepared) - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return vectors(model.get_image_features(pixel_values=pixels))


def embed_texts(model, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return vectors(model.get_text_features(input_ids=torch.from_numpy(ids.astype(np.int64))))


def vectors(found) -> np.ndarray:
    """Of older versions a tensor, of newer ones an output object."""
    return (found if hasattr(found, "numpy") else found.pooler_output).numpy()


def tiny_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Trained on the prompts of PartiPrompts and the words of TEXTS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    lines = (DATA / "parti_prompts/PartiPrompts.tsv").read_text("utf-8").splitlines()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(vocab_size=MERGES + 400, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator([line.split("\t")[0] for line in lines] + TEXTS, trainer)
    merges = [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]][:MERGES]
    return with_ids(merges), merges


def true_vocabulary(path: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    import gzip

    merges = [tuple(line.split()) for line in gzip.open(path).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]]
    return with_ids(merges), merges


def with_ids(merges: list[tuple[str, str]]) -> dict[str, int]:
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68))]
    return {x: i for i, x in enumerate([*letters, *(c + "</w>" for c in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"])}


def tokenize(vocabulary: dict[str, int], merges: list[tuple[str, str]], texts: list[str]) -> np.ndarray:
    """Ids i32[B,77] by transformers, with zeros after the end."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    rows = [tokenizer(text, truncation=True)["input_ids"] for text in texts]
    return np.array([row + [0] * (77 - len(row)) for row in rows], np.int32)


def torchscript() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A module's archive as bytes, and its state dict."""
    import torch

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 4).half())
            self.register_buffer("count", torch.tensor(7))

        def forward(self, x):
            return x * self.weight.sum()

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.proj = torch.nn.Sequential(Inner(), torch.nn.Linear(2, 3)), torch.nn.Parameter(torch.randn(5))

        def forward(self, x):
            return self.visual[0](x) + self.proj.sum()

    module, file = torch.jit.trace(Outer(), torch.ones(())), io.BytesIO()
    torch.jit.save(module, file)
    return np.frombuffer(file.getvalue(), np.uint8), {name: x.numpy() for name, x in module.state_dict().items()}


def check(path: str | os.PathLike) -> list[tuple[str, float, float]]:
    """Compares the project's answers. Returns (what, difference, tolerance), differences relative to the largest value."""
    theirs, mine = expected(path, LARGE), found(path, LARGE)
    return [(name, difference(mine[name], x), 0.0 if "ids" in name or "script" in name else TOLERANCE) for name, x in theirs.items()]


def expected(path: str | os.PathLike, large: pathlib.Path) -> dict[str, np.ndarray]:
    """The stored answers by name."""
    stored = np.load(path)
    names = ["ids", "image_features", "text_features", *(name for name in stored if name.startswith("script/"))]
    names += ["true_ids"] if "true_ids" in stored and os.environ.get("CLIP_VOCABULARY") else []
    answers = {name: stored[name] for name in names}
    if (large / "answers.npz").is_file():
        true = np.load(large / "answers.npz")
        answers |= {f"ViT-B/32 {name}": true[name] for name in ("image_features", "text_features")}
    return answers


def found(path: str | os.PathLike, large: pathlib.Path) -> dict[str, np.ndarray]:
    """The project's answers under the same names."""
    import jax

    from vimlab import torch_io
    from vimlab.scoring import clip, clip_text, clip_weights

    stored = np.load(path)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_small(stored, folder)
        towers, text = clip_weights.load(folder / "model.safetensors"), clip_text.open_vocabulary(str(folder / "merges.txt"))
        (folder / "script.pt").write_bytes(stored["torchscript"].tobytes())
        answers = {f"script/{name}": x for name, x in torch_io.read(folder / "script.pt").items()}
    texts = json.loads(str(stored["texts"]))
    answers["ids"] = text.encode(texts)
    if os.environ.get("CLIP_VOCABULARY"):
        answers["true_ids"] = clip_text.open_vocabulary(os.environ["CLIP_VOCABULARY"]).encode(texts)

    image, words = (jax.jit(f, static_argnames="head_dim") for f in (clip.image_features, clip.text_features))
    pictures = [stored[f"picture{i}"][None].astype(np.float32) / 255 for i in range(len(stored["image_features"]))]

    def embed(prefix, towers, ids, head_dim):
        answers[f"{prefix}image_features"] = np.concatenate([image(towers["image"], x, head_dim=head_dim) for x in pictures])
        answers[f"{prefix}text_features"] = np.asarray(words(towers["text"], ids, head_dim=head_dim))

    embed("", towers, stored["ids"], SMALL_HEAD)
    if (large / "answers.npz").is_file():
        ids = np.load(large / "answers.npz")["ids"].astype(np.int32)
        embed("ViT-B/32 ", clip_weights.load(large / "pytorch_model.bin"), ids, clip.HEAD_DIM)
    return answers


def write_small(stored, folder: pathlib.Path) -> None:
    """The small CLIP's files as a user has them: model.safetensors and merges.txt."""
    from vimlab import safetensors_io

    weights = {name.removeprefix("weights/"): stored[name] for name in stored if name.startswith("weights/")}
    safetensors_io.write(folder / "model.safetensors", weights)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *stored["merges"].tolist(), ""]), "utf-8")


def difference(found, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / max(np.abs(expected).max(), 1e-300))


if __name__ == "__main__":
    if sys.argv[1:] == ["make"]:
        make(ANSWERS)
    elif sys.argv[1:] == ["check"]:
        sys.path.insert(0, str(ROOT))
        for what, found, tolerance in check(ANSWERS):
            print(f"{what:40} {found:10.3g}  (at most {tolerance:g})  {'ok' if found <= tolerance else 'WRONG'}")
    else:
        sys.exit(__doc__)
