"""Label Studio's files: exports as a server of version 1.23.2 wrote them (`label_studio_exports/`), and prompts with two answers."""
import json
from pathlib import Path

import pytest

from rlhf_helpers.formats import BadData
from rlhf_helpers.labelling.label_studio_annotations import PAIRWISE, RANKING
from rlhf_helpers.labelling.label_studio_files import import_export, read_answer_pairs
from rlhf_helpers.labelling.session import LabellingSession

TUTORIAL = [{"prompt": "How do I sleep better?", "answer1": "Go to bed early.", "answer2": "Drink coffee."},
            {"prompt": "How do I save money?", "answer1": "", "answer2": "Make a list."}]


def write(path, content):
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Exports: what was judged is in the tests' own words here, told by the texts; the files are as the server wrote them

EXPORTS = Path(__file__).parent / "label_studio_exports"
ANN, BOB = "Label Studio user 1", "Label Studio user 2"
JUDGED = {("How do I sleep better?", ANN): "Go to bed early.", ("How do I sleep better?", BOB): "Drink coffee at night.",
          ("How do I save money?", ANN): "tie_good",
          ("How do I save money?", BOB): 'Write down what you spend,\nthen "look" at it; weekly.',
          ("How do I bake bread?", ANN): "tie_bad", ("How do I learn Spanish?", ANN): "Read children's books."}
SKIPPED = {("How do I bake bread?", BOB): "skip"}
RANKED = ["Go to bed early.", "Read a book.", "Count to ten.", "Drink coffee."]
NO_LABEL = ["annotation 8: it was submitted empty", "annotation 9: it selects 'tie', which is neither left nor right",
            "annotation 10: it prefers one answer and says that both are alike"]
SUSPECT = ["annotation 7: an answer is empty", "annotation 2: 13 words in 0.4 s"]
FORMS = ["json", "min.json", "csv"]


def judged(store):
    """{(prompt, annotator): text of the preferred answer, or the choice}"""
    pairs = {pair.id: pair for pair in store.comparisons()}
    texts = {answer.id: answer.text for pair in pairs.values() for answer in pair.responses}
    return {(pairs[label.comparison_id].messages[0]["content"], label.annotator): texts.get(label.verdict, label.verdict)
            for label in store.labels()}


@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_read_from_every_form(store, form):
    audit = import_export(store, EXPORTS / f"pairs.{form}")
    assert judged(store) == JUDGED | (SKIPPED if form == "json" else {})
    assert (audit.tasks, audit.labels, audit.skips) == (6, 6, form == "json")
    for found, wanted in ((audit.dropped, NO_LABEL), (audit.suspects, SUSPECT)):
        assert len(found) == len(wanted) and all(any(line.endswith(end) for line in found) for end in wanted), found


@pytest.mark.parametrize("form", FORMS)
def test_rankings_are_read_from_every_form(store, form):
    audit = import_export(store, EXPORTS / f"ranking.{form}", RANKING)
    texts = {answer.id: answer.text for pair in store.comparisons() for answer in pair.responses}
    labels = store.labels()
    ranked = [label for label in labels if label.preferred]
    assert (audit.tasks, audit.labels, len(labels), len(ranked)) == (2, 2, 9, 6) and {label.annotator for label in labels} == {ANN}
    for label in ranked:
        assert texts[label.preferred] == min((texts[answer] for answer in label.shown_order), key=RANKED.index)
    assert {label.choice for label in labels if not label.preferred} == {"tie_bad"}
    assert len(audit.dropped) == 1 and "not confirmed" in audit.dropped[0]


def test_the_same_project_in_every_form_is_counted_once(store):
    for form in FORMS * 2:
        import_export(store, EXPORTS / f"pairs.{form}")
    assert len(store.events()) == len(JUDGED | SKIPPED) and judged(store) == JUDGED | SKIPPED


def test_an_export_read_by_another_configuration_makes_no_labels_and_says_so(store):
    audit = import_export(store, EXPORTS / "ranking.json", PAIRWISE)
    assert store.labels() == [] and len(audit.dropped) == 3 and 'no field "left"' in str(audit)


@pytest.mark.parametrize("name, content, message", [
    ("a.json", {"tasks": []}, "is not a list of objects"), ("a.json", "[", "is not valid JSON"), ("a.csv", "", "annotation_id"),
    ("a.csv", "prompt,left\nx,y\n", "annotation_id"), ("a.json", [3], "is not a list of objects"),
    ("a.json", [{"id": 1, "annotations": []}, {"id": 2, "annotations": 5}], 'a.json, line 2, field "annotations": is 5, .* Fix: export'),
    ("a.json", [{"id": [1], "annotation_id": 2}], r'a.json, line 1, field "id": is \[1\], .* Fix: export the project again'),
    ("a.csv", "annotation_id,prompt\n1,é\n".encode("latin-1"), "a.csv, line 2: is not UTF-8 text. Fix: save the file as CSV UTF-8"),
    ("a.csv", 'annotation_id,prompt\n1,"p', "a.csv, line 2: is not valid CSV .* Fix: close the quotes"),
])
def test_a_file_that_is_no_export_is_refused(tmp_path, store, name, content, message):
    with pytest.raises(BadData, match=message):
        import_export(store, write(tmp_path / name, content))


def test_a_cell_may_be_long(tmp_path, store):
    text = (EXPORTS / "pairs.csv").read_text(encoding="utf-8").replace("Go to bed early.", "Go to bed early. " * 10_000)
    assert import_export(store, write(tmp_path / "a.csv", text)).labels == 6


def test_annotations_of_which_only_the_number_was_exported(tmp_path, store):
    task = {"id": 1, "data": {"prompt": "p", "left": "a", "right": "b"}, "annotations": [5]}
    audit = import_export(store, write(tmp_path / "a.json", [task]))
    assert audit.dropped == ["task 1, annotation 5: its result is not a list of results"]


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
