"""The scripts in benchmarks/ on the tiny model, and the figures that are committed beside them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks import overoptimisation as lab
from benchmarks import ppo_side_by_side as bench
from rlhf_helpers import stages
from rlhf_helpers.formats import read_json


@pytest.mark.timeout(120)
def test_the_side_by_side_is_taken_up_where_it_stopped(tiny_chat_run, tmp_path, monkeypatch):
    """Each method and SFT once for each seed; what is there is not trained again; figures of another plan are thrown away."""
    run, trained, real = tiny_chat_run, [], bench.train
    stages.need(run, "reward_model")
    run = replace(run, profile=replace(run.profile, ppo=replace(run.profile.ppo, steps=1, batch_size=8),
                                       rloo=replace(run.profile.rloo, batch_size=8)))
    monkeypatch.setattr(bench, "FILE", tmp_path / "figures.json")
    monkeypatch.setattr(bench, "PROMPTS", 3)
    monkeypatch.setattr(bench, "open_run", lambda name: run)
    monkeypatch.setattr(bench, "train", lambda run, method, seed, folder: trained.append((method, seed)) or real(run, method, seed, folder))
    bench.main(["--seeds", "1"])
    assert trained == [("ppo", 0), ("grpo", 0), ("rloo", 0)]
    rows = read_json(bench.FILE)["rows"]
    assert [row["method"] for row in rows] == ["sft", "ppo", "grpo", "rloo"]
    assert rows[0]["kl"] == 0 != rows[1]["kl"] and all(0 <= row["rubric"] <= 10 for row in rows)
    assert all(plan["steps"] * plan["batch_size"] == 8 for plan in bench.setting(run)["plans"].values())
    bench.main(["--seeds", "2"])
    assert trained[3:] == [("ppo", 1), ("grpo", 1), ("rloo", 1)] and read_json(bench.FILE)["rows"][:4] == rows
    run = replace(run, profile=replace(run.profile, ppo=replace(run.profile.ppo, beta=0.2)))
    bench.main(["--seeds", "1"])
    assert trained[6:] == trained[:3] and len(read_json(bench.FILE)["rows"]) == 4


@pytest.mark.xfail(strict=True, reason="not all five seeds have been run: python -m benchmarks.ppo_side_by_side")
def test_the_committed_figures_are_whole():
    found = read_json(bench.FILE)
    assert len({row["seed"] for row in found["rows"]}) >= 5
    assert {(row["method"], row["seed"]) for row in found["rows"]} == {
        (method, seed) for method in ("sft", *bench.METHODS) for seed in range(len(found["rows"]) // 4)}
    assert {plan["steps"] * plan["batch_size"] for plan in found["setting"]["plans"].values()} == {found["setting"]["answers"]}


@pytest.mark.timeout(120)
def test_the_lab_is_taken_up_where_it_stopped(tiny_chat_run, tmp_path, monkeypatch):
    """Each row once, early stopping beside the run without a cure; figures of other penalties are thrown away."""
    run, trained, real = tiny_chat_run, [], lab.train_policy
    stages.need(run, "reward_model")
    for name, value in {"FILE": tmp_path / "figures.json", "PROMPTS": 3, "POOL": 2, "UPDATES": 1, "BIASED": 4, "NUMBERS": (1, 2),
                        "SIZES": {"50": 4},
                        "CURES": {"50": ("KL weight 0.4", "ensemble"), "short": ("length penalty", "better labels")},
                        "PLAN": replace(lab.PLAN, steps=2, batch_size=8, generations=4)}.items():
        monkeypatch.setattr(lab, name, value)
    monkeypatch.setattr(lab, "open_run", lambda name: run)
    monkeypatch.setattr(lab, "train_policy", lambda *given, **more: trained.append(given[5].beta) or real(*given, **more))
    lab.main(["--seeds", "1"])
    rows = read_json(lab.FILE)["rows"]
    assert [(row["kind"], row["problem"], row.get("cure")) for row in rows] == [
        ("policy", "50", "none"), ("policy", "50", "early stop"), ("best_of_n", "50", None), ("policy", "sft", "sft"),
        ("policy", "50", "KL weight 0.4"), ("policy", "50", "ensemble"), ("policy", "short", "none"), ("policy", "short", "early stop"),
        ("best_of_n", "short", None), ("policy", "short", "length penalty"), ("policy", "short", "better labels")]
    assert trained == [lab.FREE, 0.4, lab.FREE, lab.FREE, lab.FREE, lab.FREE]
    assert all(len(row["rubric"]) == 3 and len(row.get("steps", {"kl": [0] * 2})["kl"]) == 2 for row in rows if row["kind"] == "policy")
    assert all(np.allclose(np.array(row["gain"])[:, 0], 0) for row in rows if row["kind"] == "best_of_n")  # best of one is chance
    lab.main(["--seeds", "1"])
    assert len(trained) == 6 and read_json(lab.FILE)["rows"] == rows
    monkeypatch.setattr(lab, "PENALTY", 1.0)
    monkeypatch.setattr(lab, "CURES", {})
    lab.main(["--seeds", "1"])
    assert len(trained) == 7 and len(read_json(lab.FILE)["rows"]) == 3


def test_the_weaknesses_like_what_they_say():
    friendly, plain = "Good luck! Take more walks. Good luck!", "Take more walks, and then some more of them."
    assert lab.courtesies(friendly) == 2 and lab.courtesies(plain) == 0
    likes = {name: liking(friendly) > liking(plain) for name, (liking, _) in lab.WEAKNESSES.items()}
    assert likes == {"length": False, "courtesy": True, "short": True}


def test_ranks_are_compared_among_answers_to_the_same_prompt():
    """Against scipy on each row; a row without any difference says nothing."""
    scores, values = np.random.default_rng(0).normal(size=(2, 3, 6))
    expected = np.mean([stats.spearmanr(s, v).statistic for s, v in zip(scores, values)])
    assert lab.within(scores, values) == pytest.approx(expected)
    assert lab.within(np.vstack([scores, np.ones(6)]), np.vstack([values, np.arange(6)])) == pytest.approx(expected)


def test_the_committed_lab_is_whole_and_small():
    found = read_json(lab.FILE)
    have = {(row["kind"], row["problem"], row.get("cure", ""), row["seed"]) for row in found["rows"]}
    assert have >= set(lab.plan_of(1, 1)) and lab.FILE.stat().st_size < 100_000
