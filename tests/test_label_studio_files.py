"""Label Studio's files: exports as a server of version 1.23.2 wrote them (`label_studio_exports/`), and prompts with two answers."""
import json

import pytest

from rlhf_helpers.formats import BadData
from rlhf_helpers.labelling.label_studio_files import read_answer_pairs
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.labelling.store import LabelStore

TUTORIAL = [{"prompt": "How do I sleep better?", "answer1": "Go to bed early.", "answer2": "Drink coffee."},
            {"prompt": "How do I save money?", "answer1": "", "answer2": "Make a list."}]


@pytest.fixture
def store(tmp_path):
    return LabelStore(tmp_path / "labels.sqlite")


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Prompts with two answers

def test_prompts_with_two_answers_can_be_labelled(tmp_path, store):
    candidates = read_answer_pairs(write(tmp_path / "prompts.json", TUTORIAL))
    assert [(row["prompt"], [answer["text"] for answer in row["responses"]]) for row in candidates] == [
        (row["prompt"], [row["answer1"], row["answer2"]]) for row in TUTORIAL]
    assert {answer["model"] for row in candidates for answer in row["responses"]} == {"prompts.json"}
    session = LabellingSession(store, candidates, "ann")
    session.choose(session.current.pair_id, "left")
    assert session.progress().saved == 1


@pytest.mark.parametrize("rows, message", [
    ([TUTORIAL[0], {"prompt": "p", "answer1": "a"}], 'line 2, field "answer2": is missing'),
    ([TUTORIAL[0] | {"prompt": " "}], 'line 1, field "prompt": is empty'),
    ([TUTORIAL[0] | {"answer2": 3}], r"line 1, field .responses\[1\].text.: is a number"),
    ({"prompt": "p"}, "is not a list of objects"), ([], "is not a list of objects"), (["p"], "is not a list of objects"),
    ('[{"prompt":', "is not valid JSON"),
])
def test_what_is_wrong_with_such_a_file_is_named(tmp_path, rows, message):
    with pytest.raises(BadData, match=message):
        read_answer_pairs(write(tmp_path / "prompts.json", rows))
