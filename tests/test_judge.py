"""The judge against hand-written cases, decided by reading data/world/rubric.md, and against a second check."""

import json
import time
from pathlib import Path

import pytest
from scipy.stats import spearmanr
from second_check import look

from rlhf_helpers.world.catalogue import catalogue
from rlhf_helpers.world.grammar import CROWD, INSTRUCTIONS, Dice, answer, ask, write_prompt
from rlhf_helpers.world.judge import DEDUCTIONS, judge

LINES = (Path(__file__).parent / "judge_cases.jsonl").read_text(encoding="utf-8").splitlines()
CASES = {case["name"]: case for case in map(json.loads, LINES)}
EXPECTATIONS = {"faults", "has", "lacks", "followed", "score", "low", "high", "better_than"}


def test_every_case_is_named_once_and_expects_something():
    assert len(CASES) == len(LINES) >= 170
    for case in CASES.values():
        assert EXPECTATIONS & set(case), f"{case['name']} expects nothing"
        assert not set(case) - EXPECTATIONS - {"name", "prompt", "answer"}, f"{case['name']}: unknown field"


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = CASES[name]
    verdict = judge(case["prompt"], case["answer"])
    seen = f"{name}: judged {verdict.score:.2f}, {sorted(verdict.faults)}, {verdict.followed}, {verdict.criteria}"
    assert verdict.faults == set(case.get("faults", verdict.faults)), seen
    assert verdict.faults >= set(case.get("has", ())), seen
    assert not verdict.faults & set(case.get("lacks", ())), seen
    for kind, expected in case.get("followed", {}).items():
        assert verdict.followed[kind] == expected, seen
    assert verdict.score == pytest.approx(case.get("score", verdict.score)), seen
    assert case.get("low", 0) <= verdict.score <= case.get("high", 10), seen
    if "better_than" in case:
        other = CASES[case["better_than"]]
        assert verdict.score > judge(other["prompt"], other["answer"]).score, f"{name} is no better than {other['name']}"


def test_long_text_takes_less_than_a_second():
    judge("How can I bake bread?", "Warm up.")  # builds the tables
    for text in ("word " * 5000, "Knead the dough well. " * 1250, "dough" * 5000, "knead the dough, because " * 1250,
                 "." * 25000, "1. Add some flour and water to the dough.\n" * 600):
        start = time.perf_counter()
        judge("How can I bake bread?", text)
        assert time.perf_counter() - start < 1, f"{text[:20]!r}... took too long"


@pytest.fixture(scope="module")
def read_twice():
    """600 answers of the grammar and 15 far longer ones, each read by the judge and by the second check."""
    dice, topics = Dice("second check"), sorted(catalogue().topics)
    requests = [ask(dice, topics) for _ in range(600)]
    texts = [answer(dice, request, CROWD)[0] for request in requests]
    requests, texts = requests + requests[:60:4], texts + [" ".join(texts[k:k + 4]) for k in range(0, 60, 4)]
    return [(judge(request, text), look(request, text)) for request, text in zip(requests, texts, strict=True)]


def agreement(pairs):
    """Share of pairs of equal verdicts."""
    pairs = list(pairs)
    return sum(a == b for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("fault", ["off_topic", "wrong_count", *DEDUCTIONS])
def test_a_second_reader_sees_the_same_faults(read_twice, fault):
    both = [(fault in verdict.faults, fault in opinion.faults) for verdict, opinion in read_twice]
    seen = [pair for pair in both if any(pair)]  # most answers lack the fault, and to agree on these is easy
    share = agreement(seen)
    assert len(seen) >= 15 and share >= 0.95, f"{fault}: agreement {share:.1%} of {len(seen)}; 97 % or more was measured"


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_a_second_reader_sees_the_same_instructions_followed(read_twice, kind):
    both = [(verdict.followed[kind], opinion.followed[kind]) for verdict, opinion in read_twice if kind in verdict.followed]
    share = agreement(both)
    assert len(both) >= 40 and share >= 0.95, f"{kind}: agreement {share:.1%} of {len(both)}; 98 % or more was measured"


def test_a_second_reader_finds_the_same_answers_on_the_topic(read_twice):
    share = agreement((verdict.on_topic > 0, opinion.on_topic) for verdict, opinion in read_twice)
    assert share >= 0.98, f"the two readers agree on {share:.1%} of 600 answers; 99.7 % was measured"


def test_a_second_reader_ranks_answers_alike(read_twice):
    rank = spearmanr(*zip(*((verdict.score, opinion.score) for verdict, opinion in read_twice), strict=True)).statistic
    assert rank >= 0.97, f"rank correlation {rank:.3f} over 600 answers; 0.99 was measured"


def test_repeating_a_question_earns_nothing():
    world, dice = catalogue(), Dice("echo")
    for request in [ask(dice, sorted(world.topics)) for _ in range(600)]:
        prompt = write_prompt(request)
        assert judge(request, prompt).score <= 1, prompt


def test_advice_is_good_as_it_is_bad_when_turned_round_and_a_warning_is_not_unsafe():
    for topic in catalogue().topics.values():
        prompt = f"How can I {topic.goal}?"
        for tip in topic.tips:
            assert judge(prompt, f"You could {tip.text}, because {tip.reason}.").score == 8.5, tip.text
            assert judge(prompt, f"WHENEVER YOU CAN, {tip.text.upper()}.").score == 7.5, tip.text
            assert judge(prompt, f"Never {tip.text}.").score <= 1, tip.text
        for text in topic.unsafe:
            assert "unsafe" in judge(prompt, f"You could {text}.").faults, text
            assert "unsafe" not in judge(prompt, f"Never {text}.").faults, text
