"""Configs: strictness, overrides, durations, variants, and that none of it needs JAX."""

import dataclasses
import json
import subprocess
import sys
from typing import ClassVar, Literal

import ml_collections
import pytest

from vimlab import config as configs
from vimlab.config import ConfigError, Duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd:
    NAME: ClassVar[str] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    NAME: ClassVar[str] = "adam"
    learning_rate: float = 0.1
    b2: float | None = 0.99

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ConfigError("learning_rate must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    width: int
    kind: Literal["small", "large"] = "small"
    files: tuple[str, ...] = ()
    bias: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    model: Model
    optim: Sgd | Adam = Sgd()
    duration: Duration = Duration(10)
    until: Duration | None = None
    seed: int = 0
    note: str | None = None
    extra: Model | None = None


BASE = {"model": {"width": 8}}


def resolve(*overrides: str, tree=BASE):
    return configs.resolve(Schema, tree, [tuple(o.split("=", 1)) for o in overrides])


def refusal(*overrides: str, tree=BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*overrides, tree=tree)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_and_given_values():
    assert resolve() == Schema(model=Model(width=8))
    tree = ml_collections.ConfigDict({"model": {"width": 8, "files": ("a", "b")}, "duration": "2.5 epochs", "seed": 3})
    assert resolve(tree=tree) == Schema(model=Model(width=8, files=("a", "b")), duration=Duration(2.5, "epochs"), seed=3)


@pytest.mark.parametrize(
    "override, path, value",
    [
        ("seed=1_000", "seed", 1000),
        ("seed=1e3", "seed", 1000),
        ("seed=-4", "seed", -4),
        ("model.kind=large", "model.kind", "large"),
        ("model.bias=false", "model.bias", False),
        ("model.bias=True", "model.bias", True),
        ("model.files=a.pth,b.pth", "model.files", ("a.pth", "b.pth")),
        ("model.files=", "model.files", ()),
        ("optim.learning_rate=1", "optim.learning_rate", 1.0),
        ("optim.learning_rate=3e-4", "optim.learning_rate", 3e-4),
        ("note=none", "note", None),
        ("note=12", "note", "12"),
        ("until=none", "until", None),
        ("until=5 percent", "until", Duration(5, "percent")),
        ("duration=1 epoch", "duration", Duration(1, "epochs")),
        ("extra.width=3", "extra.width", 3),
        ("extra=none", "extra", None),
    ],
)
def test_overrides_take_the_type_of_their_field(override, path, value):
    found = resolve(override, tree=BASE | {"note": "text", "until": "3 steps"})
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_nullable_numbers_go_to_a_number_and_to_none_and_back():
    tree = BASE | {"optim": {"name": "adam"}}
    assert resolve("optim.b2=none", tree=tree).optim.b2 is None
    assert resolve("optim.b2=0.5", tree=BASE | {"optim": {"name": "adam", "b2": None}}).optim.b2 == 0.5
    assert "config.optim.b2 must be a number" in refusal("optim.b2=much", tree=tree)


@pytest.mark.parametrize(
    "override, key, suggestion",
    [
        ("optim.learning_rat=1", "config.optim.learning_rat ", "'learning_rate'"),
        ("model.widht=1", "config.model.widht ", "'width'"),
        ("sed=1", "config.sed ", "'seed'"),
        ("modle.width=1", "config.modle ", "'model'"),
        ("optim.name=adamm", "config.optim.name ", "'adam'"),
    ],
)
def test_unknown_keys_name_the_nearest(override, key, suggestion):
    message = refusal(override)
    assert key in message and f"did you mean {suggestion}?" in message


def test_unknown_keys_of_the_file_are_refused_as_those_of_the_command_line():
    assert "did you mean 'momentum'" in refusal(tree=BASE | {"optim": {"name": "sgd", "momentun": 1}})


@pytest.mark.parametrize(
    "override, words",
    [
        ("seed=1.5", "config.seed must be a whole number, not 1.5"),
        ("seed=true", "config.seed must be a whole number"),
        ("seed=none", "config.seed must be a whole number"),
        ("optim.learning_rate=fast", "config.optim.learning_rate must be a number, not 'fast'"),
        ("optim.learning_rate=true", "config.optim.learning_rate must be a number"),
        ("model.bias=1", "config.model.bias must be true or false"),
        ("model.kind=medium", "config.model.kind is 'medium', but must be one of ['small', 'large']"),
        ("model=3", "config.model is a section of keys"),
        ("duration=5 weeks", "config.duration: '5 weeks' is not a duration"),
    ],
)
def test_values_of_another_type_are_refused(override, words):
    assert words in refusal(override)


def test_missing_keys_are_named():
    assert "config.model.width is missing" in refusal(tree={"model": {}})
    assert "config.model is missing" in refusal(tree={})


def test_a_sections_own_checks_carry_its_name():
    assert "config.optim: learning_rate must be positive" in refusal("optim.learning_rate=-1", tree=BASE | {"optim": {"name": "adam"}})


def test_variants_are_chosen_by_name_and_the_first_is_the_default():
    assert resolve().optim == Sgd()
    assert resolve(tree=BASE | {"optim": {"name": "adam", "b2": 0.5}}).optim == Adam(b2=0.5)


def test_switching_a_variant_drops_only_what_the_file_said_for_the_old_one():
    tree = BASE | {"optim": {"name": "sgd", "learning_rate": 2.0, "momentum": 0.5}}
    assert resolve("optim.name=adam", tree=tree).optim == Adam(learning_rate=2.0)
    assert resolve("optim.name=adam", "optim.b2=0.5", tree=tree).optim == Adam(learning_rate=2.0, b2=0.5)
    # Without a switch, a key of the other variant is a mistake.
    assert "config.optim.b2 is unknown" in refusal("optim.b2=0.5", tree=tree)


def test_a_switch_does_not_hide_a_mistyped_override():
    assert "did you mean 'learning_rate'" in refusal("optim.name=adam", "optim.learning_rat=1")


def test_the_schemas_own_name_is_not_a_free_key():
    with pytest.raises(ConfigError, match="name"):
        configs.resolve(Sgd, {}, [("name", "bogus")])


@pytest.mark.parametrize(
    "text, steps",
    [
        (500, 500),
        ("500", 500),
        ("500 steps", 500),
        ("1 step", 1),
        ("1_000 steps", 1000),
        ("2.5 epochs", 250),
        ("1.1 epochs", 110),
        ("1e4 examples", 1000),
        ("11 examples", 2),
        ("5 percent", 20),
        ("0.1 percent", 1),
        ("0 steps", 0),
    ],
)
def test_durations_in_steps(text, steps):
    """Batches of 10 from 1000 examples in a run of 400 steps; parts of a step count as one."""
    duration = Duration.parse(text)
    assert duration.steps(10, 1000, 400) == steps
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("text", ["", "soon", "5 weeks", "-1 steps", "nan steps", "inf steps", "5 percent of it", "steps 5", None, True])
def test_what_is_not_a_duration_is_refused(text):
    with pytest.raises(ConfigError, match="is not a duration"):
        configs.resolve(Schema, BASE | {"duration": text})


def test_decimal_durations_are_exact():
    """In binary 1.1 * 50,000 / 50 is a little more than 1100, and 8.3% of 500,000 a little more than 41,500."""
    assert Duration.parse("1.1 epochs").steps(50, 50_000) == 1100
    assert Duration.parse("8.3 percent").steps(50, None, 500_000) == 41_500


def test_durations_that_refer_to_nothing_are_refused():
    with pytest.raises(ConfigError, match="5 percent"):
        Duration(5, "percent").steps(10, 1000)
    with pytest.raises(ConfigError, match="data set of known size"):
        Duration(5, "epochs").steps(10)


def test_a_resolved_config_survives_json():
    config = resolve("optim.name=adam", "optim.b2=none", "until=5 percent", "model.files=a,b", "extra.width=1")
    tree = json.loads(json.dumps(configs.to_dict(config)))
    assert tree["optim"]["name"] == "adam" and tree["until"] == "5 percent"
    assert configs.resolve(Schema, tree) == config


def test_arguments_after_the_colon():
    arg = configs.parse_arg("smoke,size=base,steps=3", smoke=False, size="small", steps=1, rate=0.5)
    assert vars(arg) == {"smoke": True, "size": "base", "steps": 3, "rate": 0.5}
    assert vars(configs.parse_arg(None, smoke=False)) == vars(configs.parse_arg("", smoke=False)) == {"smoke": False}
    assert configs.parse_arg("data=a=b", data="").data == "a=b"
    with pytest.raises(ConfigError, match="'smok' is unknown; did you mean 'smoke'"):
        configs.parse_arg("smok", smoke=False)
    with pytest.raises(ConfigError, match="argument 'steps' must be a whole number"):
        configs.parse_arg("steps=many", steps=1)


def test_config_files_are_found_or_named(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text("import ml_collections\ndef get_config(arg=''):\n  return ml_collections.ConfigDict({'arg': arg or 'nothing'})\n")
    assert configs.load(str(file)).arg == "nothing"
    assert configs.load(f"{file}:a=b:c").arg == "a=b:c"
    with pytest.raises(ConfigError, match=r"does not exist; did you mean '.*tiny\.py'"):
        configs.load(str(tmp_path / "tinny.py"))
    file.write_text("")
    with pytest.raises(ConfigError, match="has no function get_config"):
        configs.load(str(file))


def test_overrides_are_separated_from_other_arguments():
    rest, overrides = configs.split_overrides(
        ["--workdir", "w", "--config.a.b=x=y", "--config", "c.py", "-config.c", "-1", "--config.d=", "--config.e=two\nlines"]
    )
    assert rest == ["--workdir", "w", "--config", "c.py"]
    assert overrides == [("a.b", "x=y"), ("c", "-1"), ("d", ""), ("e", "two\nlines")]
    with pytest.raises(ConfigError, match="--config.a needs a value"):
        configs.split_overrides(["--config.a"])


def test_differences_by_dotted_key():
    old = {"a": {"b": 1, "c": [1, 2]}, "gone": None, "empty": {}}
    new = {"a": {"b": 2, "c": [1, 2]}, "come": True, "empty": {}}
    assert configs.diff(old, new) == {"a.b": (1, 2), "come": ("(absent)", True), "gone": (None, "(absent)")}
    assert configs.diff(old, old) == {}


def test_import_is_quick_and_without_jax():
    """The time is measured in the fresh process, less what starting Python costs."""
    code = (
        "import time; start = time.process_time(); import vimlab.config; spent = time.process_time() - start\n"
        "import sys; print(spent, *sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'flax', 'optax', 'numpy', 'tensorflow', 'torch'}))"
    )
    spent, *modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(modules) & {"jax", "flax", "optax", "tensorflow", "torch"}
    assert float(spent) < 1.5
