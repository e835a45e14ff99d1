"""The practice world: its content, its prompts and answers, its splits, and the pages that describe it."""

import json
import re
import shutil
from dataclasses import fields, replace
from itertools import islice

import pytest

from rlhf_helpers.world import catalogue as content
from rlhf_helpers.world import judge as judging
from rlhf_helpers.world.catalogue import WORLD_FOLDER, CatalogueError, catalogue, load_catalogue
from rlhf_helpers.world.grammar import (
    CROWD,
    FAULTS,
    INSTRUCTIONS,
    TEACHER,
    Dice,
    Request,
    answer,
    ask,
    collection,
    read_prompt,
    write_prompt,
)
from rlhf_helpers.world.splits import (
    NOVELTIES,
    bias_pairs,
    corpus_requests,
    evaluation_requests,
    is_reserved,
    novelties,
    training_requests,
)

WORLD = catalogue()
TOPICS = sorted(WORLD.topics)


def requests(number, seed):
    dice = Dice(seed)
    return [ask(dice, TOPICS) for _ in range(number)]


def table(page, heading):
    """The rows of the table under a heading of a page, cells stripped of marks."""
    text = (WORLD_FOLDER / page).read_text(encoding="utf-8").split(heading, 1)[1].lstrip("\n")
    lines = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")][2:]
    return [[cell.strip(" *`−") for cell in line.strip("|").split("|")] for line in lines]


# --- content

def test_there_is_enough_of_everything():
    assert len(WORLD.topics) >= 60
    assert all(len(topic.tips) >= 12 and topic.unsafe for topic in WORLD.topics.values())
    assert all(tip.text and tip.reason for topic in WORLD.topics.values() for tip in topic.tips)
    assert len(WORLD.language["questions"]) >= 20 and len(INSTRUCTIONS) >= 8
    assert set(WORLD.language["instructions"]) == set(INSTRUCTIONS) == set(content.INSTRUCTIONS)
    assert all(len(set(wordings)) == 4 for wordings in WORLD.language["instructions"].values())


def test_personas_come_in_pairs_of_one_targeted_and_one_other():
    assert len(WORLD.personas) >= 12
    for persona in WORLD.personas.values():
        other = WORLD.personas[WORLD.counterpart(persona.id)]
        assert WORLD.counterpart(other.id) == persona.id and {persona.side, other.side} == {"targeted", "other"}


def test_no_sentence_stands_twice():
    texts = [text for name in judging.SPEECH + judging.FAULT_SPEECH for text in WORLD.language[name]]
    texts += [topic.goal for topic in WORLD.topics.values()] + [persona.text for persona in WORLD.personas.values()]
    assert len({text.lower() for text in texts}) == len(texts)


# --- damaged files

@pytest.fixture
def copy(tmp_path):
    shutil.copytree(WORLD_FOLDER, tmp_path / "world")
    return tmp_path / "world"


def change_line(folder, name, number, change):
    path = folder / name
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_json(folder, name, change):
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def edited(**values):
    return lambda line: json.dumps(json.loads(line) | values)


@pytest.mark.parametrize("change, expected", [
    (lambda line: line[:-3], ["food.jsonl line 4", "not valid JSON", "one topic a line"]),
    (edited(goal=""), ["food.jsonl line 4", "field goal", "needs a text"]),
    (edited(topic=7), ["food.jsonl line 4", "field topic", "needs a text"]),
    (edited(tips=[]), ["food.jsonl line 4", "field tips", "needs a list"]),
    (edited(unsafe=None), ["food.jsonl line 4", "field unsafe", "needs a list"]),
    (edited(unsafe=[3]), ["food.jsonl line 4", "field unsafe", "needs"]),
    (edited(tips=[{"tip": "stir well", "reason": ""}]), ["food.jsonl line 4", "tips[0]", "needs a tip and a reason"]),
    (edited(tips=[{"tip": "stir well", "reason": "it helps"}, "stir"]), ["food.jsonl line 4", "tips[1]", "a reason"]),
    (edited(tips=[{"tip": 5, "reason": "it helps"}]), ["food.jsonl line 4", "tips[0]", "needs a tip and a reason"]),
    (edited(topic="sleep"), ["food.jsonl line 4", "field topic", "'sleep'", "twice", "rename"]),
    (edited(tips=[{"tip": f"stir {k} times", "reason": f"{k} is right"} for k in range(11)]),
     ["food.jsonl line 4", "field tips", "there are 11", "write more"]),
    (lambda line: '["a list"]', ["food.jsonl line 4", "one topic a line"]),
    (lambda line: "[" * 200000, ["food.jsonl line 4", "nested too deeply", "delete the line"]),
])
def test_a_bad_topic_is_named_with_file_line_field_and_fix(copy, change, expected):
    change_line(copy, "topics/food.jsonl", 4, change)
    with pytest.raises(CatalogueError) as error:
        load_catalogue(copy)
    assert [part for part in expected if part not in str(error.value)] == [], str(error.value)


def test_the_same_tip_under_two_topics_is_named_with_both(copy):
    change_line(copy, "topics/food.jsonl", 1, edited(unsafe=["keep the bedroom dark and cool"]))
    with pytest.raises(CatalogueError, match=r"food.jsonl line 1: 'keep .*' also stands in body.jsonl line 1; re-word"):
        load_catalogue(copy)


@pytest.mark.parametrize("name, change, expected", [
    ("language.json", lambda c: c.pop("openers"), ["language.json", "field openers", "needs a list"]),
    ("language.json", lambda c: c.update(frames=["{tip}", 3]), ["language.json", "field frames", "needs a list"]),
    ("language.json", lambda c: c.pop("instructions"), ["language.json", "field instructions", "needs"]),
    ("language.json", lambda c: c["instructions"].pop("count"), ["language.json", "instructions", "count", "needs"]),
    ("language.json", lambda c: c["instructions"].update(list=["One."]), ["language.json", "instructions", "list", "4 wordings"]),
    ("language.json", lambda c: c.pop("instruction_pairs"), ["language.json", "field instruction_pairs", "needs"]),
    ("language.json", lambda c: c.pop("personas"), ["language.json", "field personas", "needs"]),
    ("language.json", lambda c: c["personas"][2].pop("side"), ["language.json", "personas[2]", "side"]),
    ("language.json", lambda c: c["personas"].pop(), ["language.json", "personas", "origin_village", "two"]),
    ("language.json", lambda c: c["personas"][2].update(id="age_old"), ["personas[2], id", "'age_old'", "twice", "rename"]),
    ("language.json", lambda c: c.update(instruction_pairs=[[[], {}]]), ["language.json", "field instruction_pairs", "needs pairs"]),
    ("language.json", lambda c: c.update(instruction_pairs=[["list", "list"]]), ["language.json", "field instruction_pairs", "different"]),
    ("language.json", lambda c: c["instruction_pairs"].append(["list", "count"]), ["language.json", "instruction_pairs", "no pair twice"]),
    ("language.json", lambda c: c["questions"].__setitem__(0, "What {nope}?"), ["language.json", "questions[0]", "{nope}", "but {goal}"]),
    ("language.json", lambda c: c["questions"].__setitem__(1, "What helps?"), ["language.json", "questions[1]", "needs {goal}"]),
    ("language.json", lambda c: c["frames"].__setitem__(2, "try {}"), ["language.json", "frames[2]", "'try {}'", "but {tip}"]),
    ("language.json", lambda c: c.update(frames=["also {tip}"]), ["language.json", "field frames", '"also"']),
    ("language.json", lambda c: c["purposes"].append("to {goal:9999999999}, "), ["language.json", "purposes[2]", "but {goal}"]),
    ("language.json", lambda c: c["goal_reactions"].append("{other}!"), ["language.json", "goal_reactions[3]", "but {goal}"]),
    ("language.json", lambda c: c.pop("collections"), ["language.json", "field collections", "needs a list"]),
    ("language.json", lambda c: c["instructions"]["count"].__setitem__(1, "{number} {tip}"), ["instructions, count[1]", "{number}, "]),
    ("language.json", lambda c: c["instructions"]["first_word"].__setitem__(1, "Begin!"), ["instructions, first_word[1]", "needs {word}"]),
    ("language.json", lambda c: c["instructions"]["list"].__setitem__(3, "{"), ["instructions, list[3]", "use no braces"]),
    ("language.json", lambda c: c.pop("knowledge"), ["language.json", "field knowledge", "needs"]),
    ("language.json", lambda c: c["knowledge"]["safe"].append(["Why?"]), ["language.json", "knowledge, safe", "needs pairs"]),
    ("language.json", lambda c: c["knowledge"]["safe"].append(["Why?", "{why}"]), ["knowledge, safe[2][1]", "but {tip}, {goal}, {reason}"]),
    ("splits.json", lambda c: c.update(topics=["sleeep"]), ["splits.json", "field topics", "sleeep", "choose from"]),
    ("splits.json", lambda c: c.update(topics=TOPICS), ["splits.json", "field topics", "none for training", "delete some"]),
    ("splits.json", lambda c: c.pop("questions"), ["splits.json", "field questions", "needs a list"]),
    ("splits.json", lambda c: c.update(questions=[3, 20]), ["splits.json", "questions[1]", "no 20", "choose from 0 to 19"]),
    ("splits.json", lambda c: c.update(questions=[-1]), ["splits.json", "questions[0]", "no -1", "choose from 0 to 19"]),
    ("splits.json", lambda c: c.update(questions=[True]), ["splits.json", "questions[0]", "no True", "choose from 0 to 19"]),
    ("splits.json", lambda c: c.update(questions=list(range(20))), ["splits.json", "field questions", "none for training", "delete some"]),
    ("splits.json", lambda c: c.update(instruction_wordings=[9]), ["splits.json", "instruction_wordings[0]", "no 9", "choose from 0 to 3"]),
    ("splits.json", lambda c: c.update(instruction_wordings=[0, 1, 2, 3]), ["splits.json", "instruction_wordings", "none for training"]),
    ("splits.json", lambda c: c.update(instruction_pairs=[["nope", "count"]]), ["instruction_pairs[0]", "nope", "choose from"]),
    ("splits.json", lambda c: c.update(instruction_pairs=[[1, 2]]), ["splits.json", "instruction_pairs[0]", "[1, 2]", "choose from"]),
    ("splits.json", lambda c: c.update(instruction_pairs=[["list", "count"]]), ["splits.json", "instruction_pairs[0]", "choose from"]),
    ("splits.json", lambda c: c.update(instruction_pairs=WORLD.language["instruction_pairs"]), ["instruction_pairs", "none for training"]),
    ("splits.json", lambda c: c.update(instruction_pairs=[p for p in WORLD.language["instruction_pairs"] if "count" in p]),
     ["splits.json", "field instruction_pairs", "no pair with count for training", "delete some"]),
])
def test_bad_language_or_splits_are_named_with_file_field_and_fix(copy, name, change, expected):
    change_json(copy, name, change)
    with pytest.raises(CatalogueError) as error:
        load_catalogue(copy)
    assert [part for part in expected if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("name, content, expected", [
    ("topics/body.jsonl", b"\n\xe9\n", ["body.jsonl line 2", "not UTF-8", "save the file as UTF-8"]),
    ("language.json", b"\xef\xbb\xbf{\n\n\xe9}", ["language.json line 3", "not UTF-8", "save the file as UTF-8"]),
    ("splits.json", b"{\n\xe9}", ["splits.json line 2", "not UTF-8", "save the file as UTF-8"]),
    ("language.json", b"[" * 200000, ["language.json", "not JSON that can be read", "restore"]),
    ("splits.json", b'{"questions": [' + b"1" * 5000 + b"]}", ["splits.json", "not JSON that can be read", "restore"]),
])
def test_what_cannot_be_read_is_named_with_file_line_and_fix(copy, name, content, expected):
    (copy / name).write_bytes(content)
    with pytest.raises(CatalogueError) as error:
        load_catalogue(copy)
    assert [part for part in expected if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize("name", ["topics/body.jsonl", "language.json", "splits.json"])
@pytest.mark.parametrize("change", [lambda data: b"\xef\xbb\xbf" + data, lambda data: b"\n" + data + b"\n \n",
                                    lambda data: data.replace(b"\n", b"\r\n")], ids=["byte-order mark", "blank lines", "Windows"])
def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(copy, name, change):
    (copy / name).write_bytes(change((copy / name).read_bytes()))
    assert load_catalogue(copy) == WORLD


def test_a_text_may_hold_a_line_separator(copy):
    change_line(copy, "topics/food.jsonl", 1, lambda line: json.dumps(json.loads(line) | {"unsafe": ["eat\u2028it"]}, ensure_ascii=False))
    assert ("eat\u2028it",) in [topic.unsafe for topic in load_catalogue(copy).topics.values()]


def test_missing_and_broken_files(copy):
    (copy / "language.json").write_text('{\n"questions": [\n', encoding="utf-8")
    with pytest.raises(CatalogueError, match=r"language\.json line 3: not JSON .*mend"):
        load_catalogue(copy)
    (copy / "language.json").unlink()
    with pytest.raises(CatalogueError, match=r"language\.json is missing: restore"):
        load_catalogue(copy)
    shutil.rmtree(copy / "topics")
    with pytest.raises(CatalogueError, match=r"no topics found in world/topics: restore"):
        load_catalogue(copy)


# --- asking

def test_a_written_prompt_is_read_back():
    for request in requests(2000, "round trip"):
        assert read_prompt(write_prompt(request)) == request, write_prompt(request)


@pytest.mark.parametrize("prompt", ["", "   ", "How do I repair a violin bow?", "Give me two tips.", "😀", "睡眠"])
def test_a_prompt_on_no_topic_is_none(prompt):
    assert read_prompt(prompt) is None


# --- answering

def test_same_seed_same_text_and_another_seed_another():
    def write(seed):
        dice = Dice(seed)
        return [(write_prompt(request := ask(dice, TOPICS)), answer(dice, request)) for _ in range(200)]

    assert write(3) == write(3)
    assert sum(a == b for a, b in zip(write(3), write(4), strict=True)) == 0


@pytest.mark.parametrize("quality, name", [(CROWD, "CROWD"), (TEACHER, "TEACHER")])
def test_faults_come_at_the_documented_rates(quality, name):
    documented = {row[0]: float(row[1 if name == "CROWD" else 2]) / 100 for row in table("README.md", "## Planted rates")}
    dice, seen, could = Dice(f"rates {name}"), dict.fromkeys(documented, 0), dict.fromkeys(documented, 0)
    for _ in range(20000):
        request = ask(dice, TOPICS)
        side = WORLD.personas[request.persona].side if request.persona else None
        _, faults = answer(dice, request, quality)
        for fault in FAULTS:
            if fault == "condescension":
                if side:
                    kind = fault if side == "targeted" else "condescension_other"
                    seen[kind] += fault in faults
                    could[kind] += 1
            elif fault != "wrong_count" or request.wish("count"):
                seen[fault] += fault in faults
                could[fault] += 1
    for fault, tried in could.items():
        if tried:
            p = documented[fault]  # four standard errors, so that even a rate of one in a hundred has to be there
            assert abs(seen[fault] / tried - p) <= 4 * (p * (1 - p) / tried) ** 0.5, f"{fault}: {seen[fault]} of {tried}"


def test_more_than_a_million_answers_to_one_plain_question():
    """Two tips in either order, each in a frame that may stand there, with or without its reason, an opener and a closing."""
    language, tips = WORLD.language, WORLD.topics["sleep"].tips
    first = [frame for frame in language["frames"] if not frame.startswith("also")]
    count = len(tips) * (len(tips) - 1) * len(first) * len(language["frames"]) * 2 * 2
    count *= (1 + len(language["openers"])) * (1 + len(language["closings"]))
    assert count == 1_283_040 > 10**6
    dice, request = Dice("distinct"), Request("sleep")
    faultless = replace(CROWD, **dict.fromkeys(FAULTS, 0.0))
    assert len({answer(dice, request, faultless)[0] for _ in range(4000)}) >= 3400


def test_nearly_no_answer_of_the_crowd_occurs_twice():
    dice = Dice("twice")
    texts = [answer(dice, ask(dice, TOPICS))[0] for _ in range(4000)]
    assert len(set(texts)) >= 0.97 * len(texts)


def test_the_judge_sees_the_faults_that_were_planted():
    dice, agree = Dice("planted"), dict.fromkeys(FAULTS, 0)
    for _ in range(1500):
        request = ask(dice, TOPICS)
        text, faults = answer(dice, request)
        verdict = judging.judge(request, text)
        for fault in FAULTS:
            agree[fault] += (fault in faults) == (fault in verdict.faults)
    for fault, number in agree.items():
        assert number / 1500 >= 0.985, f"{fault}: the judge agrees on {number} of 1500; 99 % or more was measured"


# --- splits

@pytest.fixture(scope="module")
def training():
    return training_requests(3000, 0)


@pytest.fixture(scope="module")
def evaluation():
    return evaluation_requests(600)


def test_training_and_evaluation_share_no_prompt(training, evaluation):
    prompts = {write_prompt(request) for request in training}
    held = {write_prompt(request) for request in evaluation} | {write_prompt(r) for pair in bias_pairs(200) for r in pair}
    assert len(prompts) == 3000 and len({write_prompt(request) for request in evaluation}) == 600
    assert not prompts & held


def test_nothing_held_out_and_nothing_reserved_is_trained_on(training):
    for request in training:
        assert not novelties(request) and not is_reserved(request), write_prompt(request)


def test_the_corpus_holds_no_reserved_prompt_but_every_topic_and_wording():
    corpus = list(islice(corpus_requests("test"), 5000))
    assert not any(map(is_reserved, corpus))
    assert {request.topic for request in corpus} == set(TOPICS)
    assert {request.question for request in corpus} == set(range(len(WORLD.language["questions"])))


def test_every_evaluation_prompt_is_reserved_and_has_its_novelty(evaluation):
    for number, request in enumerate(evaluation):
        assert is_reserved(request) and NOVELTIES[number % 3] in novelties(request), write_prompt(request)


def test_one_prompt_in_sixteen_is_reserved():
    share = sum(map(is_reserved, requests(4000, "reserved"))) / 4000
    assert abs(share - 1 / 16) < 0.015


def test_bias_pairs_differ_in_the_sentence_about_the_person_only():
    for targeted, other in bias_pairs(200):
        one, two = write_prompt(targeted), write_prompt(other)
        personas = WORLD.personas[targeted.persona], WORLD.personas[other.persona]
        assert personas[0].side == "targeted" and personas[1].side == "other" and personas[0].pair == personas[1].pair
        assert one.removeprefix(personas[0].text) == two.removeprefix(personas[1].text) != one
        assert is_reserved(targeted) and is_reserved(other)


def test_a_collection_holds_many_tips_of_one_topic_and_none_twice():
    dice, lengths, reasoned = Dice("collections"), set(), 0
    for _ in range(200):
        prompt, reply = collection(dice)
        verdict, topic = judging.judge(prompt, reply), read_prompt(prompt).topic
        assert verdict.faults <= {"too_long"} and not verdict.unknown and {advice.topic for advice in verdict.advice} == {topic}
        tips = [advice.tip for advice in verdict.advice]
        assert len(set(tips)) == len(tips)
        reasons = [advice.reason for advice in verdict.advice]
        assert reasons in (["right"] * len(tips), [""] * len(tips))
        assert len(tips) in (range(4, 7) if reasons[0] else range(5, 13))
        lengths.add(len(tips))
        reasoned += bool(reasons[0])
    assert lengths == set(range(4, 13)) and 30 < reasoned < 70


def test_a_share_of_the_requests_can_ask_for_a_number_of_tips():
    share = {counts: sum(any(i.kind == "count" for i in r.instructions) for r in training_requests(1000, 0, counts)) / 1000
             for counts in (0.0, 0.4, 1.0)}
    assert share[0.4] == pytest.approx(0.4 + 0.6 * share[0.0], abs=0.05) and share[1.0] == 1.0 and 0.05 < share[0.0] < 0.3


def test_a_share_of_the_requests_can_be_demanding():
    share = {two: sum(len(r.instructions) == 2 for r in training_requests(1000, 0, demanding=two)) / 1000 for two in (0.0, 0.5, 1.0)}
    assert share[0.5] == pytest.approx(0.5 + 0.5 * share[0.0], abs=0.05) and share[1.0] == 1.0 and 0.2 < share[0.0] < 0.3
    both = training_requests(300, 0, 1.0, 1.0)
    assert all(len(r.instructions) == 2 and any(i.kind == "count" for i in r.instructions) for r in both)
    assert not any(novelties(r) or is_reserved(r) for r in both)


def test_splits_repeat_with_their_seed():
    assert training_requests(50, 1) == training_requests(50, 1) != training_requests(50, 2)
    assert evaluation_requests(30) == evaluation_requests(30)
    assert bias_pairs(20) == bias_pairs(20)


# --- pages

def test_the_rubric_page_and_the_judge_have_the_same_points():
    earned = {row[0].lower(): float(row[1]) for row in table("rubric.md", "## What earns points")}
    lost = {row[0].lower().replace(" ", "_"): float(row[1]) for row in table("rubric.md", "## What costs points")}
    assert earned == judging.POINTS and sum(earned.values()) == 10
    assert lost == judging.DEDUCTIONS
    page = (WORLD_FOLDER / "rubric.md").read_text(encoding="utf-8")
    assert f"at most {judging.NOT_ON_TOPIC_CAP:.0f} point" in page and f"More than {judging.LONGEST} words" in page


def test_the_readme_and_the_grammar_have_the_same_rates():
    rows = {row[0]: row[1:3] for row in table("README.md", "## Planted rates")}
    for quality, column in ((CROWD, 0), (TEACHER, 1)):
        written = {name: float(cells[column]) for name, cells in rows.items()}
        assert written == {f.name: round(100 * getattr(quality, f.name), 1) for f in fields(quality)}


def test_the_readme_shows_rows_that_are_there():
    page = (WORLD_FOLDER / "README.md").read_text(encoding="utf-8")
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.S)]
    topic, persona = shown[0], shown[1]
    assert WORLD.topics[topic["topic"]].goal == topic["goal"]
    assert (topic["tips"][0]["tip"], topic["tips"][0]["reason"]) in {(t.text, t.reason) for t in WORLD.topics[topic["topic"]].tips}
    assert topic["unsafe"][0] in WORLD.topics[topic["topic"]].unsafe
    assert WORLD.personas[persona["id"]].text == persona["text"]
