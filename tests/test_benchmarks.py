"""The scripts in benchmarks/ on the tiny model, and the figures that are committed beside them."""

from dataclasses import replace

import pytest

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
