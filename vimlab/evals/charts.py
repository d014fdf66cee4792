"""Which metrics share a plot, the plots of a run, and those over the scale of guidance."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

import numpy as np

from vimlab.evals import page, svg
from vimlab.evals.wording import GROUPS, is_share, leaf
from vimlab.evals.workdir import Run

COLOURS = 6
MARKS = 20
TITLES = {
    "mfu": "Share of peak FLOP/s",
    "tflops": "TFLOP/s",
    "step_ms": "Step time, ms",
    "data_wait": "Time spent waiting for data",
    "psnr_of_mean_mse": "PSNR of the mean error, dB",
    "entropy_bits": "Entropy per token, bits",
    "nonfinite_share": "Steps skipped",
    "top_code_share": "Share of the busiest code",
    "bits_per_dim": "Bits per pixel and channel",
    "margin_bits": "Bits per token below the entropy of frequencies",
    "log_prob_per_token": "Log-probability of drawn tokens, nats",
    "distinct_share": "Codes in drawn pictures",
    "distinct_share_real": "Codes in as many real pictures",
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot for the metrics whose last name part matches one of the patterns; the first plot that matches takes them."""

    title: str
    patterns: tuple[str, ...]
    log: bool = False
    smoothed: bool = True
    from_zero: bool = False


PLOTS = (
    Plot("Loss", ("loss", "total_loss"), log=True),
    Plot("Bits per token", ("bits_per_token", "unigram_bits")),
    Plot("Accuracy of linear probes", ("*_accuracy",), from_zero=True),
    Plot("Perplexity of n-grams", ("perplexity_*",), log=True),
    Plot("Exponents of Zipf's and Heaps' laws", ("zipf_exponent_*", "heaps_exponent")),
    Plot("Saved by compressing tokens", ("*_saving",)),
    Plot("Entropy at a position, bits", ("position_entropy_*",)),
    Plot("What a token says of the class, bits", ("class_*_bits",), from_zero=True),
    Plot("Captions shown in full", GROUPS, from_zero=True),
    Plot("Captions shown at other scales of guidance", ("seen_at_*", "held_out_at_*"), from_zero=True),
    Plot("Statements shown, by kind", ("*_right",), from_zero=True),
    Plot("PSNR, dB", ("psnr",)),
    Plot("Reconstruction errors", ("l1", "l2", "mse", "mae", "perceptual", "lpips"), log=True),
    Plot("SSIM", ("ssim",)),
    Plot("Logit-Laplace loss", ("logit_laplace*",)),
    Plot("Codebook usage", ("codebook_usage*", "usage", "usage_batch"), from_zero=True),
    Plot("Codebook perplexity", ("*perplexity",), from_zero=True),
    Plot("Unused codes", ("dead_codes",), from_zero=True),
    Plot("Codebook losses", ("codebook*", "commit*", "quantizer*"), log=True),
    Plot("Adversarial losses", ("*adversarial*", "gan*", "disc*loss", "d_loss", "g_loss", "r1*"), log=True),
    Plot("Discriminator logits", ("*logit*",)),
    Plot("Gradient and update norms", ("*norm*",), log=True),
    Plot("Learning rate", ("lr", "lr_*", "*_lr", "learning_rate*"), smoothed=False, from_zero=True),
    Plot("Images per second", ("images_per_s*",), from_zero=True),
)


def named_plots(run: Run) -> str:
    """The plots of PLOTS that the run has metrics for."""
    groups, _ = _groups(run)
    return _wrap("pair", [_draw(run, plot, names) for plot, names in groups])


def more_plots(run: Run) -> str:
    """Everything else, small; metrics that end in the same word share a plot."""
    _, rest = _groups(run)
    plots = [Plot(TITLES.get(title, title.replace("_", " ")), (), from_zero=is_share(title)) for title in rest]
    return _wrap("small", [_draw(run, plot, names, svg.SMALL) for plot, names in zip(plots, rest.values(), strict=True)])


def _wrap(style: str, plots: list[str]) -> str:
    return f'<div class="{style}">{"".join(plots)}</div>' if plots else ""


def _groups(run: Run) -> tuple[list[tuple[Plot, list[str]]], Mapping[str, list[str]]]:
    named: dict[int, list[str]] = {}
    rest: dict[str, list[str]] = {}
    # Training before evaluation, so that it has the first colour everywhere.
    for name in sorted(run.series, key=lambda n: (not n.startswith("train/"), n)):
        matches = [i for i, p in enumerate(PLOTS) if any(fnmatch.fnmatch(leaf(name), pattern) for pattern in p.patterns)]
        if matches and len(named.get(matches[0], ())) < COLOURS:
            named.setdefault(matches[0], []).append(name)
        else:
            title = leaf(name)
            full = len(rest.get(title, ())) >= COLOURS
            rest.setdefault(name if full else title, []).append(name)
    curved = lambda names: any(len(run.series[name][0]) > 1 for name in names)  # Points alone are in the tables.
    return [(PLOTS[i], named[i]) for i in sorted(named) if curved(named[i])], {title: names for title, names in rest.items() if curved(names)}


def _draw(run: Run, plot: Plot, names: list[str], frame: svg.Frame = svg.LARGE) -> str:
    # The first colour means training wherever there is but one curve of it.
    first = 0 if names[0].startswith("train/") else 1
    series = [
        svg.Series(label, *run.series[name], sparse=not name.startswith("train/"), colour=(first + i) % COLOURS)
        for i, (name, label) in enumerate(zip(names, _labels(names), strict=True))
    ]
    shares = all(is_share(n) for n in names)
    drawing = svg.curves(
        series,
        title=f"{plot.title} over training steps",
        last_step=run.last_step,
        log=plot.log,
        smoothed=plot.smoothed,
        from_zero=plot.from_zero,
        form=svg.percent if shares else svg.compact,
        frame=frame,
        marks=sorted({e["step"] for e in run.events})[:MARKS],
    )
    final = svg.percent if shares else svg.number
    return page.plot(
        plot.title[:1].upper() + plot.title[1:], drawing, [(s.colour, s.label, final(float(s.y[-1]))) for s in series]
    )


def _labels(names: list[str]) -> list[str]:
    """The shortest words that tell the curves of one plot apart."""
    origins = [n.split("/")[0] if "/" in n else "" for n in names]
    leaves = [leaf(n).replace("_", " ") for n in names]
    for candidates in (
        origins,
        leaves if len(set(origins)) == 1 else [],
        [f"{o} {w}".strip() for o, w in zip(origins, leaves, strict=True)],
    ):
        if len(set(candidates)) == len(names) and all(candidates):
            return candidates
    return names


def guidance_plots(curve: list[dict[str, Any]], ceiling: Mapping[str, float]) -> str:
    """Captions shown, and statements by kind, over the scale of guidance; nothing for a single scale.

    Args:
      curve: {"guidance": scale, figure: share, …} by ascending scale.
      ceiling: the shares of reconstructions, drawn as level lines.
    """
    if len(curve) < 2:
        return ""
    level = [point | {f"{name}_ceiling": share for name, share in ceiling.items()} for point in curve]
    kinds = [name for name in curve[0] if name.endswith("_right")]
    plots = [("Captions shown in full, by guidance", GROUPS), ("Statements shown, by guidance", kinds)]
    return _wrap("pair", [_over_guidance(title, level, [n for n in names if n in level[0]]) for title, names in plots])


def _over_guidance(title: str, curve: list[dict[str, Any]], names: list[str]) -> str:
    at = np.array([point["guidance"] for point in curve])
    series = []
    for i, name in enumerate(names):
        label, shares = name.removesuffix("_right").replace("_", " "), np.array([point[name] for point in curve])
        series.append(svg.Series(label, at, shares, sparse=True, colour=i % COLOURS))
    drawing = svg.curves(series, title=title, last_step=float(at[-1]), from_zero=True, form=svg.percent)
    return page.plot(title, drawing, [(s.colour, s.label, svg.percent(float(s.y[-1]))) for s in series])


def language_plots(arrays: Mapping[str, Any]) -> str:
    """The curves of token_language with the laws fitted to them, and the map of entropies."""
    laws = [
        ("Frequency of tokens over rank", arrays["rank_frequency_unigrams"], "Zipf's law"),
        ("Frequency of bigrams over rank", arrays["rank_frequency_bigrams"], "Zipf's law"),
        ("Distinct tokens over tokens seen", arrays["innovation"], "Heaps' law"),
    ]
    title, at = "Entropy at each position, bits", np.array(arrays["position_entropy"])
    plots = [_law(*law) for law in laws if law[1]["x"]]
    return _wrap("pair", [*plots, page.plot(title, svg.heat_map(at, title=title, form="{:.2f}".format))])


def _law(title: str, curve: Mapping[str, list[float]], name: str) -> str:
    x = np.array(curve["x"], float)
    series = [svg.Series("measured", x, np.array(curve["y"], float))]
    series += [svg.Series(name, x, np.array(curve["fit"]), colour=1)] if curve["fit"] else []
    drawing = svg.curves(series, title=title, last_step=float(x[-1]), log=True, log_x=True, smoothed=False)
    return page.plot(title, drawing, [(s.colour, s.label, "") for s in series])


def probe_plot(blocks: list[Mapping[str, float]], baselines: Mapping[str, float]) -> str:
    """Accuracy over the blocks of a generator, counted from 1, with the baselines as level lines."""
    title, at = "Accuracy of a linear probe, by block", np.arange(1, len(blocks) + 1)
    level = lambda share: np.full(len(at), share)
    values = {"evaluation set": [b["accuracy"] for b in blocks], "held-out training examples": [b["held_out"] for b in blocks]}
    series = [svg.Series(label, at, np.array(y), sparse=True, colour=i) for i, (label, y) in enumerate(values.items())]
    series += [svg.Series(label, at, level(y), colour=i) for i, (label, y) in enumerate(baselines.items(), len(series))]
    drawing = svg.curves(series, title=title, last_step=float(at[-1]), from_zero=True, form=svg.percent, smoothed=False)
    return page.plot(title, drawing, [(s.colour, s.label, svg.percent(float(s.y.max()))) for s in series])


def speed(run: Run) -> float | None:
    """Images per second, the median over the second half of the log."""
    if "train/images_per_s" not in run.series:
        return None
    values = run.series["train/images_per_s"][1]
    return float(np.median(values[len(values) // 2 :]))
