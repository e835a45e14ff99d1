"""The scripts in benchmarks/ on the tiny model, and the figures that are committed beside them."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from transformers import LlamaConfig

from benchmarks import bench as speed
from benchmarks import bench_table, fifty_labels, final_policy, growth, policies, watch
from benchmarks import overoptimisation as lab
from benchmarks import ppo_side_by_side as bench
from rlhf_helpers import stages
from rlhf_helpers.assessment import evaluation_set
from rlhf_helpers.formats import read_json
from rlhf_helpers.profiles import PROFILES
from rlhf_helpers.world.grammar import write_prompt


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


def test_the_committed_figures_are_whole():
    found = read_json(bench.FILE)
    assert len({row["seed"] for row in found["rows"]}) >= 5
    assert {(row["method"], row["seed"]) for row in found["rows"]} == {
        (method, seed) for method in ("sft", *bench.METHODS) for seed in range(len(found["rows"]) // 4)}
    assert {plan["steps"] * plan["batch_size"] for plan in found["setting"]["plans"].values()} == {found["setting"]["answers"]}


def test_the_committed_fifty_labels_are_of_the_present_settings():
    """Else rows, README and notebook 11 speak of another `personal`. And what it imports is no setting."""
    found = read_json(Path(fifty_labels.__file__).with_suffix(".json"))
    assert found["settings"] == {name: repr(value) for name, value in sorted(fifty_labels.settings().items())}
    assert "KEEP" in found["settings"] and not {"TASTES", "ARTIFACTS"} & set(found["settings"])
    assert {f"policy {name} {seed}" for name in (*fifty_labels.TASTES, "control") for seed in range(5)} <= set(found["rows"])


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
    assert have >= set(lab.plan_of(2)) and lab.FILE.stat().st_size < 150_000


# --- run.py bench ----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def tiny_bench(tiny_chat_run):
    """The bench on a tiny run, without TRL 1.12, in its quick form."""
    run = tiny_chat_run
    stages.need(run, "reward_model")
    tight = replace(run.profile, rloo=replace(run.profile.rloo, batch_size=8))
    return speed.Bench(replace(run, profile=tight), [0], None, run.folder / "kept.json", quick=True)


def job(tiny_bench, method, target):
    plan = asdict(replace(tiny_bench.plan(method), steps=3))
    run = tiny_bench.run
    return {"method": method, "sft": str(run.path("sft")), "reward_model": str(run.path("reward_model")), "plan": plan,
            "max_new_tokens": 12, "held_out": tiny_bench.held_out[:2], "every": 16, "target": target, "start": 5.0, "seed": 1,
            "prompts": stages.rl_prompts(run, 12)}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", ["ppo", "trl_grpo", "rloo"])
def test_a_training_under_the_clock(tiny_bench, method, monkeypatch):
    """It looks after every sixteen answers, and ends at the target; what a look takes is not counted."""
    real = watch.Watch.rubric
    seen = []
    monkeypatch.setattr(watch.Watch, "rubric", lambda self, policy: seen.append(self.answers) or real(self, policy))
    row = policies.train(job(tiny_bench, method, math.inf)).row()
    assert row["to_target"] is None and row["answers"] == 24 and seen == [16] == [look["answers"] for look in row["looks"]]
    assert 0 < row["cpu"] and 0 < row["looks"][0]["cpu"] <= row["cpu"]
    done = policies.train(job(tiny_bench, method, 0.0)).row()
    assert done["to_target"]["answers"] == done["answers"] == 16


def test_the_time_of_looks_is_not_counted(tiny, monkeypatch):
    clock = iter([0.0, 10.0, 14.0, 20.0, 21.0])
    monkeypatch.setattr(watch, "now", lambda: dict.fromkeys(("cpu", "wall"), next(clock)))
    monkeypatch.setattr(watch.Watch, "rubric", lambda self, policy: 6.0)
    one = watch.Watch({"sft": str(tiny), "plan": {"batch_size": 4}, "every": 4, "target": 5.5, "start": 4.0, "method": "ppo", "seed": 0})
    one.start()
    assert not one.step(None, 1) and one.level() == pytest.approx((4 + 4 + 6) / 3)
    one.job["target"] = 5.0
    assert one.step(None, 2)
    assert one.row()["to_target"] == {"answers": 8, "cpu": 16.0, "wall": 16.0}


def test_sampling_beside_generate(tiny_bench):
    rows = tiny_bench.sampling()
    assert [row["group"] for row in rows] == [tiny_bench.plan("grpo").generations, 1]
    for row in rows:
        assert row["same_greedy_text"] and len(row["ours"]) == len(row["theirs"]) == 2
        assert all(run["tokens"] >= row["answers"] for way in ("ours", "theirs") for run in row[way])
        assert sum(row["shares"].values()) == pytest.approx(1, abs=0.01) and row["floor"]["gigaflops"] > 0.1


@pytest.mark.timeout(240)
def test_growth_and_the_power_law(tiny_bench):
    line = growth.power_law("x", "rows", [(n, 3 * n**1.5) for n in (4, 8, 16)])["exponent"]
    assert line["estimate"] == pytest.approx(1.5) and line["low"] <= line["estimate"] <= line["high"] and line["n"] == 3
    rows = growth.by_rows(tiny_bench.run, {"sft": (4, 8), "sampling": (2, 4), "grpo": (4, 8), "dpo": (4, 8), "reward_model": (4, 8)})
    assert [row["stage"] for row in rows] == ["sft", "sampling", "grpo", "dpo", "reward_model"]
    assert all(len(row["points"]) == 4 and row["points"][0][1] > 0 for row in rows)
    heavy = growth.by_weights(tiny_bench.run, {"sft": (4, 8)}, widths=(1, 2))[0]
    assert heavy["points"][0][0] < heavy["points"][-1][0] and heavy["by"] == "weights"


def test_shapes_drawn_at_random_and_one_that_fails(tiny_bench, monkeypatch):
    """The part for a GPU, on a tiny shape in 32-bit floats; no training is started."""
    def training(self, method, seed, start):
        if method == "ppo":
            raise RuntimeError("it stopped:\nout of memory")
        return {"method": method, "answers": 24, "cpu": 1.0, "wall": 1.0, "plan": self.plan(method)}

    monkeypatch.setattr(speed.Bench, "training", training)
    shape = LlamaConfig(vocab_size=420, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    found = tiny_bench.shapes({"tiny": shape}, dtype=speed.torch.float32)["tiny"]
    assert found["policies"][0] == {"method": "ppo", "failed": "out of memory"} and len(found["policies"]) == 5
    assert found["weights"] > 0 and found["sampling"][0]["same_greedy_text"]


def figures(**changes):
    """Made-up rows of a whole bench."""
    policy = lambda method, seed, cpu: {  # noqa: E731
        "method": method, "seed": seed, "to_target": cpu and {"answers": 96, "cpu": cpu, "wall": 2 * cpu}, "answers": 96,
        "cpu": cpu or 50.0,
        "wall": 2 * (cpu or 50.0), "level": 8.0, "looks": [], "peak_rss_mb": 900.0}
    taken = {"ppo": (10.0, 12.0, 11.0), "trl112_ppo": (30.0, 40.0, 33.0), "trl_grpo": (20.0, 21.0, 22.0), "trl_rloo": (None, None, 9.0)}
    runs = lambda tokens: [{"tokens": tokens, "cpu": 1.0, "wall": 1.0}] * 3  # noqa: E731
    found = {"commit": "abc", "date": "2026-11-22", "start": 7.7, "target": 8.2, "load": 1.0, "notebooks": {}, "shapes": {},
             "setting": {"machine": {"processor": "P", "cores": 2, "threads": 1, "gpu": None}},
             "policies": [policy(method, k, cpu) for method, seconds in taken.items() for k, cpu in enumerate(seconds)],
             "sampling": [{"answers": 64, "group": 8, "ours": runs(200), "theirs": runs(100), "same_greedy_text": True,
                           "shares": {"draw": 1.0}, "floor": {"arithmetic_s": 0.1, "memory_s": 0.2}}],
             "growth": [growth.power_law("sft", "rows", [(1, 1.0), (2, 2.1), (4, 4.0)])]} | changes
    return {"ratios": bench_table.ratios(found), **found}


def test_ratios_and_the_table():
    found = figures()
    assert found["ratios"]["ppo_vs_trl112_ppo"]["estimate"] == pytest.approx(11 / 33)
    assert found["ratios"]["ppo_vs_best_of_trl_grpo_rloo"]["estimate"] == pytest.approx(11 / 21)
    assert bench_table.times(found, "trl_rloo") == [50.0, 50.0, 9.0]  # two did not get there in 50 s
    found["policies"][0]["to_target"] = None
    assert bench_table.times(found, "ppo") == [bench_table.NEVER, 12.0, 11.0]
    found = figures()
    assert found["ratios"]["sampling_vs_generate"]["estimate"] == 2
    assert all(value["low"] <= value["estimate"] <= value["high"] for value in found["ratios"].values())
    table = bench_table.markdown(found)
    assert "at most 0.5: met |" in table and "at least 1.5: met |" in table and "1 of 3" in table and "| sft | rows |" in table
    wall = figures(setting={"machine": {"processor": "P", "cores": 2, "threads": 1, "gpu": "G"}})
    assert wall["ratios"]["ppo_vs_trl112_ppo"] == found["ratios"]["ppo_vs_trl112_ppo"] and "on: G, 2 cores" in bench_table.markdown(wall)


def test_a_target_that_was_not_reached_has_no_ratio():
    found = figures()
    found["policies"][0]["to_target"] = None
    ratio = bench_table.ratios(found)["ppo_vs_trl112_ppo"]
    assert bench_table.in_words(ratio) == f"{ratio['estimate']:.2f} ({ratio['low']:.2f} to never, n 3)"
    for row in found["policies"][:3]:
        row["to_target"] = None
    assert bench_table.in_words(bench_table.ratios(found)["ppo_vs_trl112_ppo"]) == "never (never to never, n 3)"


def test_a_bar_whose_value_is_uncertain_says_so():
    value = {"estimate": 0.4, "low": 0.3, "high": 0.9, "n": 3}
    assert bench_table.bar("ppo_vs_trl112_ppo", value) == "at most 0.5: met, but the interval holds the bar"
    assert bench_table.bar("ppo_vs_trl112_ppo", value | {"estimate": 0.6, "low": 0.55}) == "at most 0.5: missed"


@pytest.mark.parametrize(("name", "factor", "said"), [("ppo_vs_trl112_ppo", 1.3, 1), ("ppo_vs_trl112_ppo", 1.1, 0),
                                                      ("sampling_vs_generate", 1.3, 0), ("sampling_vs_generate", 0.7, 1)])
def test_a_ratio_that_has_become_worse_is_named(name, factor, said):
    found = figures()
    before = json.loads(json.dumps(bench_table.history_line(found)))
    found["ratios"][name]["estimate"] *= factor
    lines = bench_table.worse(found, [before])
    assert len(lines) == said and all(name in line for line in lines)
    other = before | {"machine": {"processor": "another"}}
    assert bench_table.worse(found, [other]) == []


def test_a_child_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no module named benchmarks.nothing|No module named benchmarks.nothing"):
        speed.watched([speed.sys.executable, "-m", "benchmarks.nothing"], tmp_path / "said.txt")


def test_a_stopped_bench_goes_on(tiny_bench, tmp_path, monkeypatch):
    """What is kept is not measured again, unless the setting is another."""
    tiny_bench.once("start", lambda: 7.5)
    again = speed.Bench(tiny_bench.run, [0], None, tiny_bench.kept, quick=True)
    assert again.once("start", lambda: pytest.fail("measured again")) == 7.5
    assert "start" not in speed.Bench(tiny_bench.run, [0], None, tiny_bench.kept).rows


def test_the_committed_bench():
    found = read_json(speed.HERE / "latest.json")
    for name in bench_table.BARS:
        ratio = found["ratios"][name]
        assert ratio["low"] <= ratio["estimate"] <= ratio["high"] and ratio["n"] >= 3
    assert bench_table.ratios(found) == found["ratios"] and bench_table.markdown(found) == (speed.HERE / "latest.md").read_text()
    assert all(row["same_greedy_text"] for row in found["sampling"])
    lines = [json.loads(line) for line in (speed.HERE / "history.jsonl").read_text().splitlines()]
    assert lines[-1] == json.loads(json.dumps(bench_table.history_line(found)))


# --- the final policy ---------------------------------------------------------------------------------------------------------

def of_policy(rubric, followed, unsafe):
    return {name: {"estimate": value} for name, value in (("rubric", rubric), ("instructions_followed", followed), ("unsafe_rate", unsafe))}


def test_the_final_policy_is_worse_than_sft_in_nothing():
    found = {"sft": of_policy(7.8, 0.84, 0.03), "deaf": of_policy(9.5, 0.83, 0.01), "reckless": of_policy(9.4, 0.9, 0.04),
             "good": of_policy(8.9, 0.84, 0.03), "fair": of_policy(8.8, 0.95, 0.0)}
    assert final_policy.choose(found) == "good"
    assert final_policy.choose({name: found[name] for name in ("sft", "deaf", "reckless")}) == "sft"


def test_the_final_policy_is_chosen_on_prompts_that_are_not_in_the_exam(tiny_run):
    exam = {write_prompt(request) for request in evaluation_set(tiny_run)}
    chosen_on = [write_prompt(request) for request in final_policy.fresh_requests(tiny_run, 40)]
    assert len(set(chosen_on)) == 40 and not exam & set(chosen_on)


def test_the_profile_names_the_policy_that_was_chosen():
    assert PROFILES["practice"].final == read_json(final_policy.FILE)["chosen"]
