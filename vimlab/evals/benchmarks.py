"""What outsiders' judges say of the pictures that they were given: the result files of GenEval and of DPG-Bench."""

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vimlab.config import ConfigError
from vimlab.evals.evaluator import Result


def read_geneval(path: pathlib.Path, images: Sequence[Mapping[str, Any]]) -> Result:
    """GenEval's results.jsonl, a line for each picture, as shares of one (Ghosh et al., arXiv 2310.11513).

    A tag's figure is the share of its pictures that are right, and "overall" the mean of the tags' (its summary_scores.py).

    Args:
      path: what `evaluation/evaluate_images.py` wrote.
      images: {"prompt", "files"} of each prompt, as they were drawn.

    Raises:
      ConfigError: there is no such file, a line is not one of GenEval's, or it tells of other pictures than were drawn.
    """
    judged: dict[str, tuple[str, bool]] = {}
    prompts = {file: image["prompt"] for image in images for file in image["files"]}
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        name, tag, prompt, correct = _geneval_line(line, f"{path}, line {number},")
        if name in judged:
            raise ConfigError(f"{path}, line {number}, tells of {name} again; it is several results in one, give one")
        if prompts.get(name, prompt) != prompt:
            raise ConfigError(f"{path}, line {number}, judges {name} by another prompt ({prompt!r}) than it was drawn for ({prompts[name]!r})")
        judged[name] = tag, correct
    _check_pictures(path, judged, prompts)
    tags: dict[str, list[bool]] = {}
    for tag, correct in judged.values():
        tags.setdefault(tag, []).append(correct)
    right = [[judged[file][1] for file in image["files"]] for image in images]
    means = {tag: _mean(rights) for tag, rights in tags.items()}
    metrics = {"overall": _mean(means.values()), **means}
    metrics |= {"correct_images": _mean(sum(right, [])), "correct_prompts": _mean([any(r) for r in right])}
    counts = {tag: len(rights) for tag, rights in tags.items()}
    return Result(metrics=metrics, protocol=_protocol("GenEval", path, len(judged), len(images)), arrays={"pictures_of_tag": counts})


def _geneval_line(line: str, where: str) -> tuple[str, str, str, bool]:
    """The picture's name below the folder, its tag, its prompt and the verdict."""
    try:
        row = json.loads(line)
        name, tag, prompt, correct = (row[key] for key in ("filename", "tag", "prompt", "correct"))
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where} is not one of GenEval's results, an object with 'filename', 'tag', 'prompt' and 'correct'") from None
    if not all(isinstance(x, str) for x in (name, tag, prompt)) or not isinstance(correct, bool):
        raise ConfigError(f"{where} is not one of GenEval's results: 'correct' is true or false there, the rest are texts")
    return "/".join(re.split(r"[/\\]+", name)[-3:]), tag, prompt, correct


def read_dpg(path: pathlib.Path, images: Sequence[Mapping[str, Any]]) -> Result:
    """DPG-Bench's results .txt: a line for each file, then the summary; figures are of 100 (Hu et al., arXiv 2403.05135).

    Args:
      path: what `dpg_bench/compute_dpg_bench.py` wrote.
      images: {"files"} of each prompt, as they were drawn.

    Raises:
      ConfigError: there is no such file, it has another form, or it tells of other pictures than were drawn. DPG-Bench itself
        leaves out pictures that it cannot judge, with a word on its console alone.
    """
    lines = [line for line in _text(path).split("\n") if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("Model: ")), len(lines))
    scores: dict[str, list[float]] = {}
    for number, line in enumerate(lines[:start], 1):
        name, figures = _dpg_line(line, f"{path}, line {number},")
        if name in scores:
            raise ConfigError(f"{path}, line {number}, tells of {name} again; it is several results in one, give one")
        scores[name] = figures
    _check_pictures(path, scores, {file for image in images for file in image["files"]})
    if len(judged := {len(figures) for figures in scores.values()}) > 1:
        raise ConfigError(f"{path} judges {' or '.join(map(str, sorted(judged)))} pictures of a prompt; judge as many of each")
    metrics, levels = _dpg_summary(lines[start:], path)
    mean = 100 * _mean([_mean(figures) for figures in scores.values()])
    if not math.isclose(mean, metrics["score"], rel_tol=1e-6, abs_tol=1e-9):
        raise ConfigError(f"{path} gives a DPG-Bench score of {metrics['score']:.4f}, but its pictures' mean is {mean:.4f}; it was changed, or mixed")
    protocol = _protocol("DPG-Bench", path, sum(map(len, scores.values())), len(images))
    return Result(metrics=metrics, protocol=protocol | {"judged_per_prompt": judged.pop()}, arrays={"detailed": levels})


def _dpg_line(line: str, where: str) -> tuple[str, list[float]]:
    """`path, score of each picture, their mean` → the name below the folder, the scores; a path may hold commas."""
    match = re.fullmatch(r"(.*\.[A-Za-z]\w*)((?:, [\d.][-+.\de]*){2,5})", line)
    try:
        *scores, mean = map(float, match[2].split(", ")[1:])
    except (TypeError, ValueError):
        raise ConfigError(f"{where} is not one of DPG-Bench's results: a picture's path, the scores of 1 to 4 pictures and their mean") from None
    if not all(0 <= score <= 1 for score in scores) or not math.isclose(_mean(scores), mean, abs_tol=1e-6):
        raise ConfigError(f"{where} holds scores outside 0 to 1, or another mean than theirs; it was changed, or cut off")
    return "images/" + re.split(r"[/\\]", match[1])[-1], scores


def _dpg_summary(lines: Sequence[str], path: pathlib.Path) -> tuple[dict[str, float], dict[str, float]]:
    """The score and those of the broad categories, by name; and those of the detailed categories."""
    levels: dict[str, dict[str, float]] = {"L1": {}, "L2": {}}
    level, score = levels["L1"], math.nan
    for line in lines:
        head, _, value = line.strip().rpartition(": ")
        try:
            if line.startswith("DPG-Bench score: "):
                score = float(value)
            elif line.startswith("\t"):
                level[head] = float(value)
            elif match := re.fullmatch(r"(L[12]) category scores:", line):
                level = levels[match[1]]
        except ValueError:
            raise ConfigError(f"{path} is not one of DPG-Bench's results: {line.strip()!r} gives no number") from None
    if not levels["L1"] or not all(map(math.isfinite, (score, *levels["L1"].values(), *levels["L2"].values()))):
        raise ConfigError(f"{path} lacks the summary that ends one of DPG-Bench's results; let its evaluation finish")
    return {"score": score} | {name.lower().replace(" ", "_"): v for name, v in sorted(levels["L1"].items())}, levels["L2"]


READERS = {"geneval": read_geneval, "dpg": read_dpg}


def _text(path: pathlib.Path) -> str:
    if not path.is_file():
        raise ConfigError(f"--read {path} does not exist, or is no file; give the file that the benchmark's own program wrote")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--read {path} is not UTF-8 text, so it is no result of a benchmark") from None


def _check_pictures(path: pathlib.Path, judged: Mapping[str, Any], drawn: Any) -> None:
    """Raises ConfigError unless the judged pictures are those that were drawn."""
    if strange := [name for name in judged if name not in drawn]:
        raise ConfigError(f"{path} tells of {strange[0]}, which is not among the {len(drawn):,} files drawn; give --out the folder that it judges")
    if missing := [name for name in drawn if name not in judged]:
        raise ConfigError(f"{path} says nothing of {len(missing):,} of the {len(drawn):,} files drawn, {min(missing)} among them; judge them all")


def _protocol(benchmark: str, path: pathlib.Path, count: int, prompts: int) -> dict[str, Any]:
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return {"benchmark": benchmark, "count": count, "prompts": prompts, "results": path.name, "results_fingerprint": fingerprint}


def _mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
