"""What tools/bench/generator.py measures: cells as compare.py describes them, and the targets."""

TINY = {"depth": 6, "width": 512, "heads": 8, "mlp": 2048}
VIM = {"side": 16, "codes": 8192, "model": TINY, "classes": 1000, "text": None, "activation": "gelu", "use_bias": True}
# A text encoder of 4 blocks and a decoder of 4.
PARTI = VIM | {"model": TINY | {"depth": 4}, "text": {"depth": 4, "length": 128}, "activation": "relu", "use_bias": False}


def _uncached(side: int, timed: int, targets: dict, **changes) -> dict:
    """Cached decode against whole passes, of which `timed` positions are timed; their ids are compared at the start."""
    length = side * side
    return VIM | {
        "kind": "decode", "what": f"cached decode, 6x512, batch 16, {length} tokens", "side": side, "batch": 16, "guidance": None,
        "compared": 64 if side == 8 else timed, "timed": timed, "phases": {"decode": 1.0},
        "peers": {"uncached": "jax"}, "targets": targets, "extrapolated": {"uncached": (timed, length)},
    } | changes  # fmt: skip


def _decode(batch: int, guidance: float | None, **changes) -> dict:
    rows = f"batch {batch}" if guidance is None else f"batch {batch} guided, {2 * batch} rows"
    return VIM | {
        "kind": "decode", "what": f"greedy decode, 6x512, {rows}, 256 tokens", "batch": batch, "guidance": guidance, "compared": None,
        "phases": {"decode": 1.0}, "peers": {"eager": "torch", "compile": "torch"}, "targets": {"torch": 1.3},
        "repeats": 1, "rounds": 3,
    } | changes  # fmt: skip


def _train(model: dict, **changes) -> dict:
    return model | {
        "kind": "train", "batch": 4, "learning_rate": 1e-4, "phases": {"step": 1.0},
        "peers": {"eager": "torch", "compile": "torch"}, "targets": {"torch": 0.9},
    } | changes  # fmt: skip


_GPT2 = {
    "peers": {"eager": "torch", "compile": "torch", "gpt2": "torch"}, "apart": ("gpt2",), "targets": {"torch": 1.3, "gpt2": 1.7},
}  # fmt: skip
CELLS = {
    "uncached_64": _uncached(8, 16, {"uncached": 5.0}),
    "uncached_256": _uncached(16, 2, {"uncached": None}, repeats=1, rounds=2),
    "uncached_1024": _uncached(32, 1, {"uncached": None}, repeats=1, rounds=1),
    "decode_4": _decode(4, None, **_GPT2),
    "decode_16": _decode(16, None, **_GPT2),
    "decode_guided": _decode(4, 3.0),
    "train_vim": _train(VIM, what="VIM step, 6x512, 256 tokens of 8192 codes, batch 4"),
    # Rounding turns a few ReLUs on or off: weights changed by 1e-7 of themselves move these gradients by 5e-4.
    "train_parti": _train(PARTI, what="Parti step, 4 + 4 x 512, text of up to 128, 256 tokens, batch 4", gradients=2e-3),
    "filter": {
        "kind": "filter", "what": "top-k 100, then top-p 0.95, of 64 x 8192 logits", "rows": 64, "codes": 8192, "k": 100, "p": 0.95,
        "phases": {"filter": 1.0}, "peers": {"sort": "torch", "topk": "torch"}, "targets": {},
    },
}  # fmt: skip
