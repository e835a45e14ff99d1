"""The judge against hand-written cases, decided by reading data/world/rubric.md, and against a second, different check."""

import json
import time
from pathlib import Path

import pytest

from rlhf_helpers.world.judge import judge

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
    for text in ("word " * 5000, "Knead the dough well. " * 1250, "dough" * 5000, "knead the dough, because " * 1250, "." * 25000,
                 "1. Add some flour and water to the dough.\n" * 600):
        start = time.perf_counter()
        judge("How can I bake bread?", text)
        assert time.perf_counter() - start < 1, f"{text[:20]!r}... took too long"
