"""Files of prompts of every kind: what is read, what is refused."""

import json

import pytest

from vimlab.config import ConfigError
from vimlab.data.prompts import Prompt, digest, read_prompts


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def test_lines(tmp_path):
    assert read_prompts(write(tmp_path / "a.txt", "a red circle\n\n  a blue square \r\n")) == [Prompt("a red circle"), Prompt("a blue square")]


def test_the_columns_of_parti_prompts_and_tables_like_it(tmp_path):
    table = '\ufeffPrompt\tCategory\tChallenge\tNote\n"G" in chalk\tArts\tWriting & Symbols\tone "letter"\n\n \tArts\t\t\ntwo hens\tAnimals\n'
    assert read_prompts(write(tmp_path / "a.tsv", table)) == [
        Prompt('"G" in chalk', category="Arts", challenge="Writing & Symbols", note='one "letter"'), Prompt("two hens", category="Animals"),
    ]  # fmt: skip
    assert read_prompts(write(tmp_path / "b.csv", 'id,prompt\n1,"a cup, a plate"\n2,"a ""plain"" café"\n')) == [
        Prompt("a cup, a plate"), Prompt('a "plain" café'),
    ]  # fmt: skip


def test_dpg_bench_as_a_table_with_a_row_for_each_question_and_as_a_folder(tmp_path):
    table = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
    table += 'hill7,"A hill, green.",,1,0,entity,whole,entity - whole (hill),Is there a hill?\n'
    table += 'hill7,"A hill, green.",,2,1,attribute,color,"attribute - color (hill, green)",Is it green?\nsea,The sea.,,1,0,entity,whole,,\n'
    expected = [Prompt("A hill, green.", name="hill7"), Prompt("The sea.", name="sea")]
    assert read_prompts(write(tmp_path / "dpg.csv", table)) == expected
    write(tmp_path / "prompts/sea.txt", "The sea.\n")
    write(tmp_path / "prompts/hill7.txt", "A hill,\ngreen.")
    write(tmp_path / "prompts/notes.md", "not one")
    assert read_prompts(tmp_path / "prompts") == expected


def test_geneval_keeps_the_line_itself(tmp_path):
    lines = [json.dumps({"tag": "two_object", "include": [{"class": c, "count": 1} for c in ("cup", "bed")], "prompt": "a cup and a bed"}),
             json.dumps({"prompt": "no judge for this"})]  # fmt: skip
    assert read_prompts(write(tmp_path / "m.jsonl", "\n".join(lines) + "\n")) == [
        Prompt("a cup and a bed", category="two object", metadata=lines[0]), Prompt("no judge for this"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.tsv", "Caption\tCategory\nx\ty\n", "has no column 'Prompt', but 'Caption', 'Category'; name it so"),
        ("a.tsv", "", "has no column 'Prompt', but nothing"),
        ("a.tsv", "Prompt\tNote\nx\ty\tz\n", "line 2, has 3 columns, but the first line names 2"),
        ("a.csv", "Prompt,Note\n", "holds no prompt; write one a line"),
        ("a.csv", 'Prompt\n"open\n', "line 2, cannot be read: unexpected end of data"),
        ("a.txt", "\n \n", "holds no prompt; write one a line"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"\n', "line 2, is not JSON"),
        ("a.jsonl", '["x"]\n', "line 1, has no 'prompt'"),
        ("a.jsonl", '{"prompt": ""}\n', "line 1, has no 'prompt'"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(tmp_path, name, text, sentence):
    path = write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=f"--file .*{name}") as error:
        read_prompts(path)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_read_at_all(tmp_path):
    write(tmp_path / "PartiPrompts.tsv", "café", "latin-1")
    with pytest.raises(ConfigError, match=r"--prompts .*PartiPrompts.tsv is not UTF-8 text; save it as that"):
        read_prompts(tmp_path / "PartiPrompts.tsv", "--prompts")
    with pytest.raises(ConfigError, match=r"PartiPrompt.tsv does not exist; did you mean 'PartiPrompts.tsv'\?"):
        read_prompts(tmp_path / "PartiPrompt.tsv")
    with pytest.raises(ConfigError, match=r"is a folder without \.txt files"):
        read_prompts(tmp_path)
    write(tmp_path / "f/1.txt", " ")
    with pytest.raises(ConfigError, match=r"holds 1\.txt, which is empty"):
        read_prompts(tmp_path / "f")


def test_the_digest_changes_with_what_is_said_of_a_prompt():
    assert len({digest(p) for p in ([Prompt("a")], [Prompt("a", note="b")], [Prompt("a"), Prompt("a")])}) == 3
    assert digest([Prompt("a")]) == digest([Prompt("a")])


def test_parti_prompts_are_read_whole(shared_data):
    prompts = read_prompts(shared_data / "parti_prompts/PartiPrompts.tsv")
    assert len(prompts) == 1632 and prompts[0].text == "bond" and any(p.text.startswith('"G I G G L E" painted') for p in prompts)
    assert len({p.category for p in prompts}) == 12 and len({p.challenge for p in prompts}) == 11 and all(p.category for p in prompts)
