"""Files of prompts: lines of text, tables (PartiPrompts, DPG-Bench), GenEval's JSON lines, a folder of one prompt a file.

A table's columns are found by name, in any case: `Prompt` (or DPG-Bench's `item_id` and `text`), and where it has them
`Category`, `Challenge` and `Note`, as in PartiPrompts (github.com/google-research/parti).
"""

import csv
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

from vimlab.config import ConfigError, suggest

DPG_COLUMNS = ("item_id", "text")  # Of the table of github.com/TencentQQGYLab/ELLA, dpg_bench; a row for each question on a prompt.


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to draw, and what its file says of it; "" where that is nothing.

    Attributes:
      name: its own in the benchmark that it is of, such as the stem of its file.
      metadata: its line of GenEval's file, as it stands there.
    """

    text: str
    name: str = ""
    category: str = ""
    challenge: str = ""
    note: str = ""
    metadata: str = ""


def read_prompts(path: pathlib.Path, flag: str = "--file") -> list[Prompt]:
    """The prompts of a folder of .txt files, or of a .jsonl, .tsv, .csv or text file, in their order (a folder's by name).

    Raises:
      ConfigError: it does not exist, is not UTF-8 text, holds no prompt, or not the columns or fields that its kind has;
        `flag` is how the user named it.
    """
    where = f"{flag} {path}"
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        prompts = [Prompt(" ".join(_text(file, where).split()), name=file.stem) for file in files]
        if empty := [file.name for file, prompt in zip(files, prompts, strict=True) if not prompt.text]:
            raise ConfigError(f"{where} holds {empty[0]}, which is empty; write its prompt, or remove it")
        if not prompts:
            raise ConfigError(f"{where} is a folder without .txt files; a prompt is read from each of those")
        return prompts
    if not path.is_file():
        raise ConfigError(f"{where} does not exist{suggest(path.name, [p.name for p in path.parent.glob('*')])}")
    lines = _text(path, where).split("\n")
    reader = {".jsonl": _json_lines, ".tsv": _table, ".csv": _table}.get(path.suffix.lower())
    prompts = reader(lines, where, path) if reader else [Prompt(line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{where} holds no prompt; write one a line")
    return prompts


def digest(prompts: Sequence[Prompt]) -> str:
    """Sixteen hexadecimal digits that change with any prompt and with what is said of it."""
    return hashlib.sha256(json.dumps([dataclasses.astuple(p) for p in prompts]).encode()).hexdigest()[:16]


def _text(path: pathlib.Path, where: str) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text{f' ({path.name})' if path.name not in where else ''}; save it as that") from None


def _json_lines(lines: Sequence[str], where: str, path: pathlib.Path) -> list[Prompt]:
    """GenEval's evaluation_metadata.jsonl (github.com/djghosh13/geneval), or any JSON objects with a "prompt"."""
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ConfigError(f"{where}, line {number}, is not JSON; each line is one object, as in GenEval's files") from None
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{where}, line {number}, has no 'prompt'; each line is an object with one, as in GenEval's files")
        # What GenEval's own script reads of a line is "include" and "tag".
        metadata = line.strip() if isinstance(row.get("tag"), str) and isinstance(row.get("include"), list) else ""
        prompts.append(Prompt(text.strip(), category=row["tag"].replace("_", " ") if metadata else "", metadata=metadata))
    return prompts


def _table(lines: Sequence[str], where: str, path: pathlib.Path) -> list[Prompt]:
    # Nothing is quoted in PartiPrompts, where prompts themselves begin with a quotation mark.
    form = dict(delimiter="\t", quoting=csv.QUOTE_NONE) if path.suffix.lower() == ".tsv" else {}
    reader = csv.DictReader((line + "\n" for line in lines), **form, strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = [name.lower() for name in header]
        rows = []
        for row in reader:
            if None in row:
                raise ConfigError(f"{where}, line {reader.line_num}, has {len(header) + len(row[None])} columns, but the first line names {len(header)}")
            rows.append({name: (value or "").strip() for name, value in row.items()})
    except csv.Error as error:
        # The row begins after the last one that could be read.
        raise ConfigError(f"{where}, line {reader.line_num + 1}, cannot be read: {error}") from None
    if set(DPG_COLUMNS) <= set(reader.fieldnames):
        texts: dict[str, str] = {}
        for row in rows:
            texts[row["item_id"]] = texts.get(row["item_id"]) or row["text"]
        return [Prompt(text, name=name) for name, text in texts.items() if text]
    if "prompt" not in reader.fieldnames:
        raise ConfigError(f"{where} has no column 'Prompt', but {', '.join(map(repr, header)) or 'nothing'}; name it so")
    known = ("category", "challenge", "note")
    return [Prompt(row["prompt"], **{name: row.get(name, "") for name in known}) for row in rows if row["prompt"]]
