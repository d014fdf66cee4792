"""What figures and pictures are called in a report, and how figures are written."""

import fnmatch
import re
from collections.abc import Callable

from vimlab.evals import svg

Format = Callable[[float], str]
# Metric: its name for people, its unit, how it is written.
METRICS: dict[str, tuple[str, str, Format]] = {
    "psnr": ("PSNR, mean over images", "dB", "{:.2f}".format),
    "psnr_of_mean_mse": ("PSNR of the mean squared error", "dB", "{:.2f}".format),
    "ssim": ("SSIM", "", "{:.4f}".format),
    "ms_ssim": ("MS-SSIM", "", "{:.4f}".format),
    "lpips": ("LPIPS, mean over images", "", "{:.4f}".format),
    "l1": ("L1, mean absolute error", "", "{:.4f}".format),
    "l2": ("L2, mean squared error", "", "{:.5f}".format),
    "usage": ("Codes used by the whole set", "", svg.percent),
    "usage_batch": ("Codes used by one batch", "", svg.percent),
    "perplexity": ("Perplexity", "", "{:,.1f}".format),
    "entropy_bits": ("Entropy per token", "bits", "{:.2f}".format),
    "dead_codes": ("Codes never used", "", svg.number),
    "top_code_share": ("Share of the busiest code", "", svg.percent),
    "bits_per_token": ("Bits per token", "bits", "{:.3f}".format),
    "unigram_bits": ("Entropy of the tokens' frequencies, to be beaten", "bits", "{:.3f}".format),
    "margin_bits": ("Below that entropy by", "bits", "{:.3f}".format),
    "nats_per_token": ("The same in nats per token", "nats", "{:.3f}".format),
    "bits_per_dim": ("Bits per pixel and channel", "bits", "{:.4f}".format),
    "log_prob_per_token": ("Log-probability of a drawn token, mean", "nats", "{:.3f}".format),
    "distinct_share": ("Codes in the drawn pictures", "", svg.percent),
    "distinct_share_real": ("Codes in as many real pictures", "", svg.percent),
    "seen": ("Captions shown in full", "", svg.percent),
    "seen_ceiling": ("Captions shown by reconstructions of the real pictures", "", svg.percent),
    "seen_control": ("Captions shown by pictures of other captions", "", svg.percent),
    "held_out": ("Held-out captions shown in full", "", svg.percent),
    "held_out_ceiling": ("Held-out captions shown by reconstructions of the real pictures", "", svg.percent),
    "held_out_control": ("Held-out captions shown by pictures of other captions", "", svg.percent),
    "count_right": ("Number of objects right", "", svg.percent),
    "colour_right": ("Colours right", "", svg.percent),
    "shape_right": ("Shapes right", "", svg.percent),
    "size_right": ("Sizes right", "", svg.percent),
    "relation_right": ("Relations right", "", svg.percent),
    "frechet": ("Fréchet distance", "", "{:.3f}".format),
    "spatial_frechet": ("Fréchet distance of spatial features", "", "{:.3f}".format),
    "fid": ("FID", "", "{:.2f}".format),
    "sfid": ("sFID", "", "{:.2f}".format),
    "rfid": ("FID of reconstructions", "", "{:.3f}".format),
    "rsfid": ("sFID of reconstructions", "", "{:.3f}".format),
    "kid": ("Kernel distance (KID)", "", "{:.5f}".format),
    "kid_std": ("Its deviation over subsets", "", "{:.5f}".format),
    "inception_score": ("Inception Score", "", "{:.2f}".format),
    "inception_score_std": ("Its deviation over splits", "", "{:.3f}".format),
    "precision": ("Precision", "", "{:.3f}".format),
    "recall": ("Recall", "", "{:.3f}".format),
    "density": ("Density", "", "{:.3f}".format),
    "coverage": ("Coverage", "", "{:.3f}".format),
    "nearest_training": ("Distance to the nearest training picture, over that of unseen real ones", "", "{:.2f}".format),
    "huffman_bits": ("Huffman code, per token", "bits", "{:.3f}".format),
    "huffman_saving": ("Saved by it of a fixed-length code", "", svg.percent),
    "lzma_bits": ("LZMA, per token", "bits", "{:.3f}".format),
    "lzma_saving": ("Saved by it of a fixed-length code", "", svg.percent),
    "zipf_exponent_unigrams": ("Zipf exponent of tokens", "", "{:.3f}".format),
    "zipf_r2_unigrams": ("R² of that fit", "", "{:.3f}".format),
    "zipf_exponent_bigrams": ("Zipf exponent of bigrams", "", "{:.3f}".format),
    "zipf_r2_bigrams": ("R² of that fit", "", "{:.3f}".format),
    "heaps_exponent": ("Heaps exponent, token innovation", "", "{:.3f}".format),
    "heaps_r2": ("R² of that fit", "", "{:.3f}".format),
    "vocabulary_share_100": ("Of all tokens that occur, those in 100 images", "", svg.percent),
    "perplexity_unigrams": ("Perplexity of unigrams", "", "{:,.1f}".format),
    "perplexity_bigrams": ("Perplexity of bigrams", "", "{:,.1f}".format),
    "perplexity_trigrams": ("Perplexity of trigrams", "", "{:,.1f}".format),
    "position_entropy_mean": ("Entropy at a position, mean", "bits", "{:.2f}".format),
    "position_entropy_min": ("Entropy at a position, lowest", "bits", "{:.2f}".format),
    "position_entropy_max": ("Entropy at a position, highest", "bits", "{:.2f}".format),
    "class_information_bits": ("What a token says of the class", "bits", "{:.4f}".format),
    "class_information_shuffled_bits": ("The same of shuffled classes, by chance alone", "bits", "{:.4f}".format),
    "class_entropy_bits": ("Entropy of the classes", "bits", "{:.3f}".format),
    "block_accuracy": ("Linear probe of the best block", "", svg.percent),
    "best_block": ("That block, counted from 1", "", svg.number),
    "latents_accuracy": ("Of the tokenizer's latents", "", svg.percent),
    "quantized_accuracy": ("Of their codes", "", svg.percent),
    "pixels_accuracy": ("Of 8x8 pixels", "", svg.percent),
    "chance_accuracy": ("Of always naming the commonest class", "", svg.percent),
    # GenEval's and DPG-Bench's, in the units that they are published in.
    "overall": ("Overall, mean of the tasks", "", "{:.4f}".format),
    "single_object": ("Single object", "", "{:.4f}".format),
    "two_object": ("Two objects", "", "{:.4f}".format),
    "counting": ("Counting", "", "{:.4f}".format),
    "colors": ("Colours", "", "{:.4f}".format),
    "position": ("Position", "", "{:.4f}".format),
    "color_attr": ("Colour attribution", "", "{:.4f}".format),
    "correct_images": ("Pictures that are right", "", svg.percent),
    "correct_prompts": ("Prompts with a picture that is right", "", svg.percent),
    "score": ("DPG-Bench score", "of 100", "{:.2f}".format),
    "clip_score": ("CLIP score of drawn pictures and their captions", "", "{:.2f}".format),
    "clip_score_control": ("CLIP score of drawn pictures and other captions", "", "{:.2f}".format),
    "clip_score_real": ("CLIP score of the set's own pictures", "", "{:.2f}".format),
    "clip_score_real_control": ("CLIP score of the set's own pictures and other captions", "", "{:.2f}".format),
}
# Figures of sets, whose names go on with the size of small subsets and the network of the features; "r" before them is of reconstructions.
_SETS = "(spatial_frechet|frechet|kid_std|kid|precision|recall|density|coverage|nearest_training|inception_score)"
OF_SETS = re.compile(rf"r?{_SETS}(?:_subsets_of_(\d+))?((?:_\w+?)??)(_std)?")
EVALUATIONS = {
    "fid": "Drawn pictures against real ones",
    "rfid": "Reconstructions against their originals",
    "inception_score": "Inception Score",
    "clip_score": "CLIP score",
    "probe": "Linear probe",
}
# Evaluator, metric, heading: what stands at the top.
CARDS = (
    ("reconstruction", "psnr", "PSNR"),
    ("reconstruction", "ssim", "SSIM"),
    ("codebook", "usage", "Codebook usage"),
    ("codebook", "perplexity", "Codebook perplexity"),
    ("likelihood", "bits_per_token", "Bits per token"),
    ("likelihood", "unigram_bits", "Unigram entropy"),
    ("fid", "fid", "FID"),
    ("rfid", "rfid", "FID of reconstructions"),
    ("probe", "block_accuracy", "Linear probe"),
    ("alignment", "seen", "Captions shown"),
    ("alignment", "held_out", "Held-out captions shown"),
    ("clip_score", "clip_score", "CLIP score"),
)
PICTURES = {
    "reconstruction": "Held-out images; under each strip, what the model makes of it",
    "prompts": "Drawn by `vimlab sample` for what it was asked",
    "samples": "What the model draws; where it was told something, the real picture is on the right",
    "neighbours": "Drawn pictures on the left; beside each the training pictures nearest to it",
    "drawn": "The first of the pictures whose set was compared",
    "alignment": "Drawn from the caption alone, ticked where every statement of it is found in the picture",
    "drawn_unlike": "Of the pictures drawn, those farthest from every real one in the features that were compared",
    "reconstruction_worst": "The images that come back worst; on the right, what the model makes of each",
    "alignment_failed": "The pictures that miss the most of their captions, and what is not found in each",
    "clip_score_lowest": "The pictures that fit their captions least by CLIP's cosine, the set's own on the right",
    "clip_score": "Drawn from the caption, which follows its cosine to the picture in CLIP's space",
}
GROUPS = ("seen", "held_out", "seen_ceiling", "held_out_ceiling", "seen_control", "held_out_control")
SHARES = ("*usage*", "*share*", "*wait*", "mfu", "*fraction*", "*_right", "*_saving", "*_accuracy", *GROUPS)


def leaf(name: str) -> str:
    """`eval/reconstruction/psnr` → `psnr`."""
    return name.rsplit("/", 1)[-1]


def is_share(name: str) -> bool:
    """Whether a metric is a share of one, to be shown as per cent."""
    return any(fnmatch.fnmatch(_plain(name)[0], pattern) for pattern in SHARES)


def heading_of(evaluator: str) -> str:
    """What an evaluator's figures are called."""
    return EVALUATIONS.get(evaluator, evaluator.capitalize().replace("_", " "))


def key_of(metric: str) -> str:
    """The key of METRICS that tells of a metric, if there is one."""
    plain, _ = _plain(metric)
    found = OF_SETS.fullmatch(plain)
    return plain if plain in METRICS or not found else found[1] + (found[4] or "")


def name_of(metric: str) -> str:
    """A metric's name for people; `seen_at_3` is `seen` at guidance 3, `kid_random_conv_v1` the KID of that network's features."""
    plain, scale = _plain(metric)
    key, found = key_of(metric), OF_SETS.fullmatch(plain)
    words = [METRICS[key][0] if key in METRICS else plain.replace("_", " ")]
    if key != plain:
        words += [f"subsets of {found[2]}"] * bool(found[2]) + [found[3].strip("_").replace("_", "-")] * bool(found[3])
    return ", ".join(words + [f"guidance {scale}"] * bool(scale))


def value_of(metric: str, value: float | None) -> tuple[str, str]:
    """A metric's value as text, and its unit."""
    if value is None:
        return "not finite", ""
    _, unit, form = METRICS.get(key_of(metric), ("", "", svg.percent if is_share(metric) else svg.number))
    return form(value), unit


def _plain(metric: str) -> tuple[str, str]:
    """A metric's own name and the scale of guidance that its name ends in, or ""."""
    plain, _, scale = leaf(metric).partition("_at_")
    return plain, scale
