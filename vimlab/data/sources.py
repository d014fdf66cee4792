"""From one line of text to a source of records: finds out what a path holds, names its splits, cuts slices.

    emoji:train                      the embedded captioned emoji (splits train, test)
    shapes:train?size=64&count=1000  the synthetic shapes world
    tfds:NAME:SPLIT                  a prepared TFDS data set by name
    path/to/images                   a folder of images, of tars, of Parquet files, of a TFDS data set or an imported one
    path/train-{00000..00003}.tar    some tars or Parquet files; `*` and `?` work too
    …#test   …#[:90%]   …#test[90%:] one split of several, and a slice of it

The kind is told from what is there; `folder:`, `wds:`, `parquet:`, `array_record:` or `tfds:` before a path say it.
"""

import difflib
import glob
import itertools
import pathlib
import re
import urllib.parse
from collections.abc import Callable

from vimlab.data.base import IMAGE_SUFFIXES, DataError, DecodeError, Record, Source, SourceInfo, Subset
from vimlab.data.formats.array_record import ArrayRecords, read_manifest
from vimlab.data.formats.folder import Folder
from vimlab.data.formats.synthetic import Shapes

__all__ = ["DataError", "DecodeError", "Record", "Source", "SourceInfo", "Subset", "open_source", "open_splits"]

KINDS = ("emoji", "shapes", "tfds", "folder", "wds", "parquet", "array_record")
SPLITS = ("train", "training", "val", "valid", "validation", "test", "eval")
EMOJI = pathlib.Path(__file__).parent / "embedded" / "emoji"
Opener = Callable[[], Source]


def open_source(spec: str) -> Source:
    """The source that a spec names. Raises DataError (one sentence) where there is none, or it does not say which split."""
    base, split, cut = _parts(spec)
    openers = _openers(base, split)
    if split is None and len(openers) > 1:
        first = min(openers, key=_order)
        raise DataError(f"{base!r} has the splits {sorted(openers)}; choose one, as in {base + '#' + first!r}")
    if split is not None and split not in openers:
        near = difflib.get_close_matches(split, openers, 1, 0.5)
        raise DataError(f"{base!r} has no split {split!r}{_did_you_mean(near)}; it has {sorted(openers)}")
    source = (openers[split] if split is not None else next(iter(openers.values())))()
    return _slice(source, cut, spec) if cut else source


def open_splits(spec: str) -> dict[str, Source]:
    """All splits that a spec names: one where it says which, otherwise each that is there."""
    base, split, cut = _parts(spec)
    if split is not None or cut:
        source = open_source(spec)
        return {split or next(iter(_openers(base, split))): source}
    return {name: opener() for name, opener in sorted(_openers(base, None).items(), key=lambda item: _order(item[0]))}


def _order(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _parts(spec: str) -> tuple[str, str | None, str]:
    """Splits `BASE#SPLIT[SLICE]` (and `emoji:SPLIT`, `shapes:SPLIT?…`, `tfds:NAME:SPLIT`) into base, split and slice."""
    base, _, rest = spec.partition("#")
    match = re.fullmatch(r"([\w.+-]*)(\[.*\])?", rest)
    if not base or not match:
        raise DataError(f"{spec!r} is not understood; after '#' comes a split, a slice, or both, as in '#train[:90%]'")
    split, cut = match[1] or None, match[2] or ""
    named = re.fullmatch(r"(emoji|shapes):(\w+)(\?.*)?", base) or re.fullmatch(r"(tfds:[^:?]+):([^?:]+)(\?.*)?", base)
    if named and split is None:
        base, split = named[1] + (named[3] or ""), named[2]
    return base, split, cut


def _openers(base: str, split: str | None) -> dict[str, Opener]:
    """What opens each split of a spec without its split and slice."""
    match = re.fullmatch(rf"({'|'.join(KINDS)})(?::([^?]*))?(?:\?(.*))?", base)
    kind, path, options = match.groups() if match else (None, base, None)
    options = dict(urllib.parse.parse_qsl(options or "", keep_blank_values=True))
    if kind == "shapes":
        arguments = {name: _whole(name, options) for name in options}
        return {name: lambda name=name: Shapes(name, **arguments) for name in ("train", "test")}
    if kind == "emoji":
        path, kind = str(EMOJI), "array_record"
    if kind == "tfds" and not pathlib.Path(path or "").exists():
        return _tfds_openers(path, split, options.get("data_dir"))
    if not path:
        raise DataError(f"{base!r} needs a path or a split after the colon")
    files = _expand(path)
    if files is None:
        path = _existing(path)
        kind = kind or _detect(path)
        path = _tfds_version(path) if kind == "tfds" else path
        if kind == "folder":
            roots = _folder_splits(path)
            inside = sorted({p.name for root in roots.values() for p in root.iterdir() if p.is_dir()})
            classes = tuple(inside) if len(roots) > 1 and inside else None
            return {name: lambda root=root: Folder(root, classes) for name, root in roots.items()}
        if kind == "array_record":
            return {name: lambda name=name: ArrayRecords(path, name) for name in read_manifest(path)["splits"]}
        if kind == "tfds":
            return _tfds_openers(str(path), split, None)
        files = {"wds": _files(path, ".tar"), "parquet": _files(path, ".parquet")}[kind]
        groups = _file_splits(files) if path.is_dir() else {"train": files}
    else:
        kind = kind or {".tar": "wds", ".parquet": "parquet"}.get(files[0].suffix)
        groups = {"train": files}
    if kind not in ("wds", "parquet") or not files:
        raise DataError(f"{base!r} holds no .tar or .parquet file")
    return {name: lambda group=group, name=name: _open_files(kind, group, f"{path}" if len(groups) == 1 else f"{path}#{name}")
            for name, group in groups.items()}


def _open_files(kind: str, files: list[pathlib.Path], name: str) -> Source:
    if kind == "wds":
        from vimlab.data.formats.webdataset import WebDataset

        return WebDataset(files, name)
    from vimlab.data.formats.parquet import Parquet

    return Parquet(files, name)


def _tfds_openers(where: str, split: str | None, data_dir: str | None) -> dict[str, Opener]:
    from vimlab.data.formats import tfds

    if split is None and "/" in where and not pathlib.Path(where).exists():
        where, _, split = where.rpartition("/")  # tfds:NAME/SPLIT
        return {split: lambda: tfds.Tfds(where, split, data_dir)}
    names = {split} if split is not None else set(tfds.split_names(where, data_dir))
    return {name: lambda name=name: tfds.Tfds(where, name, data_dir) for name in names}


def _detect(path: pathlib.Path) -> str:
    if path.suffix in (".tar", ".parquet"):
        return {".tar": "wds", ".parquet": "parquet"}[path.suffix]
    if path.is_dir():
        if (path / "manifest.json").is_file():
            return "array_record"
        if _tfds_version(path) != path or (path / "dataset_info.json").is_file():
            return "tfds"
        for kind, suffix in (("wds", ".tar"), ("parquet", ".parquet")):
            if _files(path, suffix):
                return kind
        return "folder"
    kinds = "a folder, a .tar or a .parquet file"
    image = path.suffix.lower() in IMAGE_SUFFIXES
    raise DataError(f"{str(path)!r} is not {kinds}" + (f"; give its folder, {str(path.parent)!r}" if image else ""))


def _tfds_version(path: pathlib.Path) -> pathlib.Path:
    """A TFDS data set's newest version folder, where `path` is the folder above it."""
    versions = [p.parent for p in path.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name)]
    return max(versions, key=lambda p: [int(n) for n in p.name.split(".")], default=path)


def _files(path: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """The file itself, or those with the suffix in the folder, or in its folder `data` as Hugging Face lays them out."""
    if path.is_file():
        return [path]
    return sorted(path.glob("*" + suffix)) or sorted((path / "data").glob("*" + suffix))


def _file_splits(files: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """Files by the split their names begin with; all of them are `train` where some name begins with none."""
    named = [(re.match(rf"({'|'.join(SPLITS)})(?=[-_.])", file.name), file) for file in files]
    if not all(match for match, _ in named):
        return {"train": files}
    groups = {}
    for match, file in named:
        groups.setdefault(match[1], []).append(file)
    return groups


def _folder_splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Sub-folders named like splits are splits, not classes, where there is nothing else in the folder."""
    inside = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if inside and all(p.name.lower() in SPLITS for p in inside):
        return {p.name: p for p in sorted(inside)}
    return {"train": root}


def _expand(path: str) -> list[pathlib.Path] | None:
    """The files of `a-{000..003}.tar`, `{a,b}.tar` and globs; None where the path is a plain one."""
    if pathlib.Path(path).exists() or not re.search(r"[{*?\[]", path):
        return None
    texts = [[]]
    for literal, braces in re.findall(r"([^{]*)(?:\{([^}]*)\})?", path):
        ends = re.fullmatch(r"(\d+)\.\.(\d+)", braces)
        options = [f"{n:0{len(ends[1])}d}" for n in range(int(ends[1]), int(ends[2]) + 1)] if ends else braces.split(",")
        texts += [[literal + option for option in options]] if literal or braces else []
    files = []
    for text in ("".join(choice) for choice in itertools.product(*texts[1:])):
        found = sorted(glob.glob(text)) if re.search(r"[*?\[]", text) else [text] if pathlib.Path(text).is_file() else []
        if not found:
            raise DataError(f"{path!r}: there is no file {text!r}")
        files += found
    return [pathlib.Path(file) for file in files]


def _existing(path: str) -> pathlib.Path:
    """The path, with `~` for the home folder; DataError naming the first missing part and its nearest neighbour."""
    whole = pathlib.Path(path).expanduser()
    if whole.exists():
        return whole
    parent, missing = whole, whole
    while not parent.exists():
        parent, missing = parent.parent, parent
    near = difflib.get_close_matches(missing.name, [p.name for p in parent.iterdir()], 1) if parent.is_dir() else []
    if not near and ":" in path:
        near = [f"{kind}:{path.partition(':')[2]}" for kind in difflib.get_close_matches(path.partition(":")[0], KINDS, 1)]
        raise DataError(f"data {path!r} does not exist{_did_you_mean(near)}; known kinds are {list(KINDS)}")
    raise DataError(f"data path {path!r} does not exist{_did_you_mean([str(parent / n) for n in near])}")


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _whole(name: str, options: dict[str, str]) -> int:
    known = ("size", "count", "seed", "objects")
    if name not in known or not options[name].isdigit():
        raise DataError(f"shapes option {name}={options[name]!r} is not understood; it takes whole numbers for {list(known)}")
    return int(options[name])


def _slice(source: Source, cut: str, spec: str) -> Subset:
    """Cuts `[from:to]`, each a count, a percentage, or empty; a shared edge belongs to the second slice."""
    match = re.fullmatch(r"\[(?:(\d+)(%?))?:(?:(\d+)(%?))?\]", cut)
    if not match:
        raise DataError(f"{spec!r}: the slice {cut!r} is not understood; write for example [:90%], [90%:] or [100:600]")
    size = len(source)
    first, last = (default if number is None else int(number) * size // 100 if percent else int(number)
                   for number, percent, default in ((match[1], match[2], 0), (match[3], match[4], size)))
    if not 0 <= first < last <= size:
        raise DataError(f"{spec!r}: the slice {cut} is empty or beyond the {size} records of {source.info.name!r}")
    return Subset(source, range(first, last), cut)

