"""The data files: round trips, every bad row named, no file ever half-written."""
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_helpers import formats

words = st.text(min_size=1, max_size=40).filter(str.strip)
said_by_user = words | words.map(lambda text: formats.as_messages(text, "user"))
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                           lambda inner: (st.lists(inner, max_size=2)
                                          | st.dictionaries(st.text(max_size=5), inner, max_size=2)))
responses = st.lists(st.fixed_dictionaries({"id": words, "text": st.text(max_size=40), "model": words,
                                            "settings": st.dictionaries(words, json_values, max_size=2)}),
                     min_size=2, max_size=4, unique_by=lambda response: response["id"])
ROWS = {
    "prompts": st.fixed_dictionaries({"prompt": said_by_user}, optional={"split": words}),
    "instructions": st.fixed_dictionaries({"prompt": words, "completion": words, "topic": st.text(max_size=10),
                                           "source": st.sampled_from(formats.SOURCES)}),
    "candidates": st.fixed_dictionaries({"prompt": said_by_user, "responses": responses}),
    "preferences": st.fixed_dictionaries({
        "prompt": words, "chosen": st.text(max_size=20), "rejected": st.text(max_size=20), "annotator": words,
        "strength": st.floats(min_value=0.01, max_value=1)}).filter(lambda row: row["chosen"] != row["rejected"]),
}
READ = {form: getattr(formats, f"read_{form}") for form in ROWS}
WRITE = {form: getattr(formats, f"write_{form}") for form in ROWS}
ANSWER = {"id": "a", "text": "t", "model": "m", "settings": {}}
GOOD = {"prompt": "How do I sleep better?", "completion": "Keep one bedtime.", "source": "human", "topic": "sleep"}


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.mark.parametrize("form", ROWS)
@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_written_is_read(form, data, tmp_path):
    rows = data.draw(st.lists(ROWS[form], max_size=4))
    path = tmp_path / "rows.jsonl"
    WRITE[form](path, rows)
    assert READ[form](path) == rows
    for row in rows:
        conversational = formats.to_conversational(row)
        WRITE[form](path, [conversational])
        assert READ[form](path) == [conversational]
        assert formats.to_plain(conversational) == formats.to_plain(row)


def test_line_ends_and_marks_of_other_systems(tmp_path):
    path = tmp_path / "windows.jsonl"
    row = GOOD | {"completion": "Größe \u2028 😀"}
    line = json.dumps(row, ensure_ascii=False) + "\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + (line * 2).encode() + b"\r\n")
    assert formats.read_instructions(path) == [row, row]


@pytest.mark.parametrize("change, field, fix", [
    ({"prompt": "  "}, "prompt", "write the text"),
    ({"prompt": 7}, "prompt", "put the text in quotes"),
    ({"prompt": []}, "prompt", "at least one"),
    ({"prompt": "half \ud83d"}, "prompt", "write the text again"),
    ({"prompt": [{"role": "user"}]}, "prompt[0]", '"role"'),
    ({"prompt": [{"role": "robot", "content": "x"}]}, "prompt[0].role", "system, user, assistant"),
    ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt", "end with one by the user"),
    ({"completion": [{"role": "assistant", "content": "x"}]}, "prompt and completion", "one form"),
    ({"source": "internet"}, "source", "human, generated, imported"),
    ({"topic": None}, "topic", "quotes"),
])
def test_bad_field_is_named_with_its_fix(tmp_path, change, field, fix):
    path = tmp_path / "bad.jsonl"
    base = formats.to_conversational(GOOD) if isinstance(change.get("prompt"), list) else GOOD
    path.write_text(lines(GOOD, base | change), encoding="utf-8")
    with pytest.raises(formats.BadData) as caught:
        formats.read_instructions(path)
    problem, = caught.value.problems
    assert (problem.line, problem.field) == (2, field) and fix in problem.fix
    assert f'{path}, line 2, field "{field}"' in str(caught.value)


def test_missing_field_names_the_misspelt_one(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines({("promt" if name == "prompt" else name): value for name, value in GOOD.items()}))
    with pytest.raises(formats.BadData, match=r'field "prompt": is missing\. Fix: rename "promt"'):
        formats.read_instructions(path)


@pytest.mark.parametrize("form, row, field", [
    ("candidates", {"prompt": "p", "responses": [ANSWER]}, "responses"),
    ("candidates", {"prompt": "p", "responses": [ANSWER, ANSWER]}, "responses"),
    ("candidates", {"prompt": "p", "responses": [ANSWER, {"id": "b", "text": 1, "model": "m", "settings": {}}]},
     "responses[1].text"),
    ("candidates", {"prompt": "p", "responses": [ANSWER, {"id": "b", "text": "t", "model": "m"}]},
     "responses[1].settings"),
    ("candidates", {"prompt": "p", "responses": [ANSWER, "b"]}, "responses[1]"),
    ("candidates", {"prompt": "p", "responses": {}}, "responses"),
    ("preferences", {"prompt": "p", "chosen": "a", "rejected": "a", "annotator": "x", "strength": 1}, "rejected"),
    ("preferences", {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": "x", "strength": 2}, "strength"),
    ("preferences", {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": "x", "strength": True}, "strength"),
    ("prompts", "prompt", ""),
])
def test_other_forms_are_checked(tmp_path, form, row, field):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines(json.dumps(row)))
    with pytest.raises(formats.BadData) as caught:
        READ[form](path)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_good_rows_are_kept_and_bad_ones_told(tmp_path, capsys):
    path = tmp_path / "mixed.jsonl"
    torn = json.dumps(GOOD)[:30].encode()
    bad = lines("{}", "not json", '{"prompt": NaN}').encode() + b'"\xff"\n'
    path.write_bytes(lines(GOOD).encode() + bad + lines(GOOD).encode() + torn)
    rows = formats.read_instructions(path, bad="keep_good")
    assert rows == [GOOD, GOOD]
    assert [problem.line for problem in rows.problems] == [2, 2, 2, 2, 3, 4, 5, 7]
    assert "cut off" in rows.problems[-1].what and "UTF-8" in rows.problems[-2].fix
    assert "Left out 5 bad rows, kept 2 good ones." in capsys.readouterr().out


def test_many_bad_rows_are_summed_up(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(lines(*["[]"] * 25, GOOD))
    with pytest.raises(formats.BadData) as caught:
        formats.read_instructions(path)
    assert len(caught.value.problems) == 25
    assert str(caught.value).count("line ") == 10 and "15 more of 25" in str(caught.value)
    assert "25 bad and 1 good rows" in str(caught.value)


def test_whole_last_line_without_line_end_is_good(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD))
    assert formats.read_instructions(path) == [GOOD]


def test_bad_rows_are_not_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    formats.write_instructions(path, [GOOD])
    for bad in (GOOD | {"prompt": ""}, GOOD | {"weight": float("nan")}, GOOD | {"model": object()}):
        with pytest.raises(ValueError, match=r"(not|Nothing was) written"):
            formats.write_instructions(path, [GOOD, bad])
    assert formats.read_instructions(path) == [GOOD]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    formats.write_json(path, {"old": 1})
    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        formats.write_json(path, {"new": 2})
    assert formats.read_json(path) == {"old": 1} and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_json_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebook that makes it"):
        formats.read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a":\n')
    with pytest.raises(formats.BadData, match=r"half\.json, line 2"):
        formats.read_json(tmp_path / "half.json")
    for text, said in [('{"a": NaN}', "NaN is not a JSON"), ("[-Infinity]", "-Infinity is not a"), ("[" * 200000, "nested too deeply")]:
        (tmp_path / "half.json").write_text(text)
        with pytest.raises(formats.BadData, match=rf"half\.json, line 1: is .*{said}.* Fix: mend the file, or make it again\."):
            formats.read_json(tmp_path / "half.json")
        with pytest.raises(formats.BadData, match=r"Fix: export it again\."):
            formats.read_json(tmp_path / "half.json", fix="export it again")
    with pytest.raises(FileNotFoundError, match="no such file"):
        formats.read_prompts(tmp_path / "none.jsonl")


def test_texts_of_messages():
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    assert formats.as_text(talk) == "System: Be kind.\n\nUser: Hello"
    with pytest.raises(ValueError, match='"prompt" is more than one message'):
        formats.to_plain({"prompt": talk})
