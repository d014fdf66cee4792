"""Sweeps by enumeration; trials' names, each once, and what is refused before anything starts."""

import itertools
import re

import pytest

from vimlab.config import ConfigError
from vimlab.sweep import chain, experiment, fixed, product, seeds, zip_
from vimlab.sweep.algebra import split_values, text
from vimlab.sweep.store import chosen
from vimlab.sweep.trials import make_trials, names, short_keys

BASE = "configs/vitvq_emoji.py:smoke"
DIM, RATE = "model.quantizer.dim", "optim.learning_rate"


def test_product_is_the_product_and_the_last_part_changes_fastest():
    made = list(product({DIM: [4, 8], RATE: [1.0, 2.0]}, seeds(3)))
    assert made == [{DIM: d, RATE: r, "seed": s} for d, r, s in itertools.product([4, 8], [1.0, 2.0], range(3))]


def test_zip_chain_fixed_and_seeds():
    assert list(zip_({DIM: [4, 8]}, {RATE: [1.0, 2.0]})) == [{DIM: 4, RATE: 1.0}, {DIM: 8, RATE: 2.0}]
    assert list(zip_({DIM: [4, 8], RATE: [1.0, 2.0]})) == [{DIM: 4, RATE: 1.0}, {DIM: 8, RATE: 2.0}]
    assert list(chain({DIM: [4, 8], RATE: [1.0]}, fixed({"ema": None}))) == [{DIM: 4}, {DIM: 8}, {RATE: 1.0}, {"ema": None}]
    assert list(seeds([5, 7])) == [{"seed": 5}, {"seed": 7}]
    nested = product(chain(fixed({"reseed": None}), {"reseed.every": [5, 25]}), seeds(2))
    assert list(nested) == [o | {"seed": s} for o in ({"reseed": None}, {"reseed.every": 5}, {"reseed.every": 25}) for s in (0, 1)]


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"one length, but these have \[2, 3\]"):
        list(zip_({DIM: [4, 8]}, seeds(3)))
    with pytest.raises(ConfigError, match="both set seed"):
        list(product(seeds(2), fixed({"seed": 1})))
    with pytest.raises(ConfigError, match="single value 4"):
        list(product({DIM: 4}))
    with pytest.raises(ConfigError, match="numbers, texts"):
        text({"every": 5})


def test_values_as_they_are_typed():
    assert [text(v) for v in (None, True, 4, 1e-4, "5 percent", [1, 2])] == ["none", "true", "4", "0.0001", "5 percent", "1,2"]
    assert split_values("4, 8,[1,2],(3,4)") == ["4", "8", "[1,2]", "(3,4)"]


def test_keys_are_as_short_as_tells_them_apart():
    assert short_keys(["optim.learning_rate", "discriminator.learning_rate", "seed"]) == {
        "optim.learning_rate": "optim.learning_rate", "discriminator.learning_rate": "discriminator.learning_rate", "seed": "seed",
    }  # fmt: skip
    assert short_keys(["a.every", "b.a.every", "c"])["a.every"] == "a.every"  # No tail of it is its own; the whole key is.
    assert short_keys([DIM, RATE]) == {DIM: "dim", RATE: "learning_rate"}


def test_names_are_safe_for_files_unlike_and_short():
    made = names([{"a": "x/y"}, {"a": "x y"}, {"a": "X y"}, {"b": "../" * 40 + "data"}, {}, {f"k{i}": "v" * 20 for i in range(9)}])
    assert made[4] == "base" and len({n.lower() for n in made}) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9.=+_-]{1,120}", n) and not n.startswith(".") for n in made), made


def test_trials_are_named_by_what_they_change_whatever_else_there_is():
    recipe = fixed({"duration": 4, RATE: 1e-3})
    trials, same = make_trials(BASE, product(recipe, {DIM: [4, 8]}, seeds(2)))
    assert [t.name for t in trials] == ["dim=4_seed=0", "dim=4_seed=1", "dim=8_seed=0", "dim=8_seed=1"] and same == 0
    assert trials[0].overrides == {"duration": "4", RATE: "0.001", DIM: "4", "seed": "0"}
    assert trials[3].config["model"]["quantizer"]["dim"] == 8 and trials[3].config["duration"] == "4 steps"
    assert trials[1].train(BASE, "W") == ["train", "--config", BASE, "--workdir", "W", "--config.duration=4", f"--config.{RATE}=0.001",
                                          f"--config.{DIM}=4", "--config.seed=1"]  # fmt: skip
    # One value more, or less, renames nothing.
    assert make_trials(BASE, product(fixed({"duration": 4, RATE: 1e-3}), {DIM: [4]}, seeds(1)))[0][0].name == "dim=4_seed=0"
    # What is fixed is told where trials differ in it.
    unlike, _ = make_trials(BASE, chain(fixed({"reseed": None}), fixed({"reseed.every": 5})))
    assert [t.name for t in unlike] == ["reseed=none", "every=5"]


def test_trials_of_one_resolved_config_are_one():
    trials, same = make_trials(BASE, chain(fixed({}), {"seed": [0, 1], RATE: [2e-3, "0.0020"]}))
    assert same == 3 and [t.name for t in trials] == ["base", "seed=1"]
    assert len({t.digest for t in trials}) == 2
    everywhere, same = make_trials(BASE, seeds(3), [("seed", "5")])
    assert len(everywhere) == 1 and same == 2 and everywhere[0].config["seed"] == 5


def test_mistakes_are_refused_with_the_trial_and_the_key():
    with pytest.raises(ConfigError, match=r"trial dimm=4: config.model.quantizer.dimm is unknown; did you mean 'dim'"):
        make_trials(BASE, product({"model.quantizer.dimm": [4]}))
    with pytest.raises(ConfigError, match=r"trial dim=wide: config.model.quantizer.dim must be a whole number"):
        make_trials(BASE, product({DIM: [4, "wide"]}))
    with pytest.raises(ConfigError, match="makes no trials"):
        make_trials(BASE, iter(()))


def test_some_of_the_trials():
    trials, _ = make_trials(BASE, product({DIM: [4, 8, 16]}, seeds(2)))
    assert [t.name for t in chosen(trials, "dim=8*", None)] == ["dim=8_seed=0", "dim=8_seed=1"]
    parts = [chosen(trials, None, f"{i}/4") for i in range(4)]
    assert sorted(t.name for part in parts for t in part) == sorted(t.name for t in trials)
    for bad in ("4/4", "1", "a/b", "-1/2"):
        with pytest.raises(ConfigError, match="i/n"):
            chosen(trials, None, bad)
    with pytest.raises(ConfigError, match="no trial's name matches"):
        chosen(trials, "dim=9*", None)


def test_targets(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from vimlab.sweep import seeds\nbase = 'configs/vitvq_emoji.py:smoke'\nevals = 'codebook'\ndef sweep():\n    return seeds(2)\n")
    read = experiment.read(str(file), base_args=["holdout=3"])
    assert (read.name, read.base, read.evals, list(read.sweep())) == ("mine", BASE + ",holdout=3", "codebook", [{"seed": 0}, {"seed": 1}])
    read = experiment.read(BASE, [f"{DIM}=4,8", "config.seed=0"])
    assert list(read.sweep()) == [{DIM: "4", "seed": "0"}, {DIM: "8", "seed": "0"}]
    for target, over, why in (
        (str(file), ["seed=1"], "sweep of its own"), (BASE, [], "what to sweep over"), (BASE, ["seed"], "a key and its values"),
        (BASE, ["seed=0", "seed=1"], "names a key twice"), ("configs/vitvq_emojis.py", ["seed=0"], "did you mean"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            experiment.read(target, over)
    (tmp_path / "wrong.py").write_text("def sweep(): ...\n")
    with pytest.raises(ConfigError, match="must hold base"):
        experiment.read(str(tmp_path / "wrong.py"))
    (tmp_path / "neither.py").write_text("")
    with pytest.raises(ConfigError, match="neither a config"):
        experiment.read(str(tmp_path / "neither.py"))


def test_the_committed_experiment_makes_the_trials_that_it_says():
    read = experiment.read("experiments/code_dimension.py", base_args=["data=emoji"])
    trials, same = make_trials(read.base, read.sweep())
    assert len(trials) == 42 and same == 0 and trials[0].name == "dim=4_normalize=true_seed=0"
