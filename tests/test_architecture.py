"""Who may know whom: the imports of every module, read from its source, keep the direction of the design."""

import ast
import functools
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "vimlab"
MODULES = {
    ".".join(("vimlab", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# The first pattern that matches counts. A module may import its own level and those below.
LEVELS = [
    (7, r"vimlab\.(plan|launch|sweep)(\..*)?"),
    (7, r"vimlab\.(cli|train|trained|eval|eval_prompts|eval_compare|tokenize|sample|ckpt|config_command|weights_command|doctor|doctor_pod|run|data\.commands|(data\.)?__main__)"),
    (6, r"vimlab\.tasks\..*"),
    (5, r"vimlab\.evals(\..*)?"),
    (4, r"vimlab\.((sampling|scoring)(\..*)?|pretrained)"),
    (3, r"vimlab\.(tokenizers|generators)(\..*)?"),
    (2, r"vimlab\.losses(\..*)?"),
    (1, r"vimlab\.nn(\..*)?"),
    (0, r"vimlab(\.tasks)?"),
    (0, r"vimlab\.(config|tokens|random|state|adafactor|optim|metrics|paths|pictures|checkpoint|checksums|exits|published|weights|export|\w+_io)"),
    (0, r"vimlab\.(parallel|data)(\..*)?"),
]
HEAVY = {"orbax": {"vimlab.checkpoint"}, "tensorflow_datasets": {"vimlab.data.formats.tfds"}}


def level(module: str) -> int:
    return next(n for n, pattern in LEVELS if re.fullmatch(pattern, module))


def imports(node: ast.AST, *, nested: bool) -> set[str]:
    """Dotted names that a module's source imports; without `nested`, only what importing the module itself imports."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            found |= {f"{child.module}.{alias.name}" for alias in child.names}
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            pass  # What a module does as a program, `python -m vimlab.config`, is no part of what it knows.
        elif nested or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            found |= imports(child, nested=nested)
    return found


@functools.cache
def source(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def known(module: str, *, nested: bool = True) -> set[str]:
    """The modules of this package that a module imports."""
    names = {n for n in imports(source(module), nested=nested) if n.split(".")[0] == "vimlab"}
    return {n if n in MODULES else n.rpartition(".")[0] for n in names}


def test_the_reader_of_imports_sees_them():
    assert {"vimlab.config", "vimlab.run", "vimlab.evals.report", "vimlab.tasks.task"} <= known("vimlab.train")
    assert "vimlab.config" in known("vimlab.cli") and "vimlab.config" not in known("vimlab.cli", nested=False)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    assert known(module) <= set(MODULES), "an import of a module that does not exist"
    upward = {other for other in known(module) if level(other) > level(module)}
    assert not upward, f"{module} imports upward: {sorted(upward)}"


def test_no_circle_of_imports():
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle: {' → '.join([*path[path.index(module):], module])}"
        if module not in done:
            path.append(module)
            for other in sorted(known(module, nested=False)):
                visit(other)
            done.add(path.pop())

    for module in MODULES:
        visit(module)


def test_tokenizers_and_generators_meet_only_in_tokens():
    for module in MODULES:
        for mine, other in (("tokenizers", "generators"), ("generators", "tokenizers")):
            if module.startswith(f"vimlab.{mine}"):
                assert not any(n.startswith(f"vimlab.{other}") for n in known(module)), module


def test_data_knows_no_model_and_no_jax_arrays_but_where_they_are_placed():
    for module in MODULES:
        if module.startswith("vimlab.data") and module not in ("vimlab.data.commands", "vimlab.data.__main__"):
            names = {n.split(".")[1] for n in known(module) if "." in n}
            assert names <= {"data", "config", "paths", "pictures", "checksums", "tokens"}, f"{module} imports {names}"
            top = {n.split(".")[0] for n in imports(source(module), nested=True)}
            assert not top & {"flax", "optax"}, module
            assert "jax" not in top or module == "vimlab.data.prefetch", module


def test_models_never_see_a_run():
    for module in MODULES:
        if re.match(r"vimlab\.(nn|losses|tokenizers|generators)\b", module):
            assert not known(module) & {"vimlab.run", "vimlab.state", "vimlab.checkpoint", "vimlab.metrics"}, module


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_have_one_door(module):
    top = {n.split(".")[0] for n in imports(source(module), nested=True)}
    for library, doors in HEAVY.items():
        assert library not in top or module in doors, f"{module} imports {library}; only {sorted(doors)} may"
    assert not top & {"tensorflow", "torch", "transformers"}, f"{module} needs what is not in the core install"


def test_every_file_states_its_job():
    for module, path in MODULES.items():
        text = ast.get_docstring(source(module))
        if path.read_text().strip():
            assert text, f"{module} has no docstring"
            first = text.splitlines()[0]
            assert len(first) > 15 and first[-1] in ".:`", f"{module}: {first!r}"


def test_public_functions_of_models_say_what_they_do():
    for module in MODULES:
        if re.match(r"vimlab\.(nn|losses|tokenizers|parallel)\b", module):
            for node in source(module).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"


def test_files_are_named_and_kept_short():
    assert not [m for m in MODULES if re.search(r"(^|[._])(utils?|helpers?|common|misc|code)$", m)]
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"files with more than one job: {long}"
