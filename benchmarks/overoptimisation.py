"""Over-optimisation and its cures: reward against true rubric score over KL, by RL and by best-of-n.

    python -m benchmarks.overoptimisation [--run NAME] [--seeds 2]

writes `overoptimisation.json` beside this file, which notebook 06 shows. The run (default: the one that the environment names) has to
have its SFT model, preferences and reward model. The reward models made here and a pool of answers are kept in the run's folder
`overoptimisation`. Each row is written down when it is measured: the same command takes up a broken series where it stopped, and starts
anew where models, preferences or plans are others.

Problems: reward models trained on few labels (`50`, `200`, `1000`, `all`), and on 400 labels of annotators with a weakness for long,
courteous or short answers. Each policy is trained without a KL penalty, then once more with each cure.
"""

import argparse
import hashlib
import json
import math
import shutil
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from rlhf_helpers import stages
from rlhf_helpers.formats import atomic_write_text, read_json
from rlhf_helpers.models import completion_log_probs, load_policy, load_reward_model, load_tokenizer, sample
from rlhf_helpers.profiles import ReinforcementLearning
from rlhf_helpers.rewards import (
    accuracy,
    best_of_n_curve,
    biased_labels,
    ensemble,
    plus,
    reward_of,
    score_differences,
    train_reward_model,
    words_outside,
)
from rlhf_helpers.rl import KeepBest, rubric, train_policy
from rlhf_helpers.runs import Run, fingerprint, open_run
from rlhf_helpers.world.catalogue import catalogue
from rlhf_helpers.world.grammar import write_prompt
from rlhf_helpers.world.splits import evaluation_requests

FILE = Path(__file__).with_suffix(".json")
FREE = 1e-9  # a KL weight that weighs nothing: at 0 TRL loads no reference and logs no KL
PLAN = ReinforcementLearning(steps=30, batch_size=32, generations=8, learning_rate=1.2e-3, beta=FREE)
SIZES = {"50": 50, "200": 200, "1000": 1000, "all": 10**6}
UPDATES = 25  # at least, for each reward model: few labels are passed over several times
BIASED = 400  # labels of the annotators with a weakness
NUMBERS = (1, 2, 4, 8, 16, 32, 64)  # best of
POOL = 40  # held-out prompts with 64 answers each, sampled once
PROMPTS = 80  # held out, for the policies
PENALTY = 0.2  # for each word, or each outside the usual lengths, in spreads of the reward over the SFT model's answers
EMPTY = 3  # an answer of fewer words says nothing
PHRASES = [phrase for kind in ("openers", "closings") for phrase in catalogue().language[kind]]


def words(answer: str) -> int:
    """Words of an answer."""
    return len(answer.split())


def courtesies(answer: str) -> int:
    """Friendly openings and closings of the catalogue in an answer, repeated ones too."""
    return sum(answer.count(phrase) for phrase in PHRASES)


WEAKNESSES = {"length": (words, 0.8), "courtesy": (courtesies, 0.8), "short": (lambda answer: -words(answer), 1.0)}  # share of labels
KL_WEIGHTS = {"KL weight 0.1": 0.1, "KL weight 0.4": 0.4, "KL weight 1.6": 1.6}
CURES = {  # beside "none", which gives "early stop" too
    "length": ("KL weight 0.4", "ensemble", "length penalty", "better labels"),
    "short": ("length penalty", "KL weight 0.4", "price on each word"),  # the last is none: it makes things worse
    "courtesy": ("ensemble", "length penalty", "better labels", "KL weight 0.4"),
    "50": ("KL weight 0.4", "ensemble", "KL weight 0.1", "KL weight 1.6")}


class Lab:
    """The run under test, with what several rows need made once."""

    def __init__(self, run: Run):
        self.run, self.folder, self.tokenizer = run, run.folder / "overoptimisation", load_tokenizer(run.path("sft"))
        self.training, self.held_out = stages.preferences(run)
        self.model, self.pool = cache(self._model), cache(self._pool)

    def setting(self) -> dict:
        """What the figures depend on."""
        preferences = hashlib.sha256(self.run.path("preferences").read_bytes()).hexdigest()[:16]
        models = {stage: fingerprint(self.run.path(stage)) for stage in ("sft", "reward_model")}
        return {"models": models, "preferences": preferences, "plan": asdict(PLAN),
                "reward_model": asdict(self.run.profile.reward_model), "updates": UPDATES, "biased_labels": BIASED,
                "weaknesses": {name: share for name, (_, share) in WEAKNESSES.items()}, "penalty": PENALTY,
                "pool": [POOL, max(NUMBERS)], "prompts": PROMPTS, "numbers": list(NUMBERS)}

    # --- reward models ------------------------------------------------------------------------------------------------------

    def labels(self, problem: str, seed: int, member: int = 0, careful: bool = False) -> list[dict]:
        """Labels for a reward model; each `member` has others. `careful`: half of the biased ones are given again without the bias."""
        rows = [self.training[k] for k in np.random.default_rng(seed).permutation(len(self.training))]
        number = SIZES.get(problem, BIASED)
        part = rows[number * member: number * (member + 1)]
        if not part:
            raise ValueError(f"{len(rows)} preferences are too few for {member + 1} reward models of {number} labels each")
        if problem not in WEAKNESSES:
            return part
        liking, share = WEAKNESSES[problem]
        return biased_labels(part, liking, share / 2 if careful else share, seed)

    def _model(self, problem: str, seed: int, member: int = 0, careful: bool = False) -> Path:
        """The folder of a reward model, trained if it is not there yet. The problem `careful` has no weakness.

        The run's own model would not do for `all`: it weighs two clues beside, which the others have not.
        """
        folder = self.folder / f"{problem}_{seed}_{member}{'_careful' * careful}"
        if not (folder / "config.json").exists():
            rows, plan = self.labels(problem, seed, member, careful), self.run.profile.reward_model
            passes = max(plan.epochs, math.ceil(UPDATES * plan.batch_size / len(rows)))
            train_reward_model(self.run.path("sft"), rows, folder, replace(plan, epochs=passes), seed)
        return folder

    def reward(self, problem: str, cure: str, seed: int):
        """What the policy is trained on."""
        if cure == "ensemble":
            return ensemble([reward_of(self.model(problem, seed, member)) for member in range(3)])
        plain = reward_of(self.model(problem, seed, careful=cure == "better labels"))
        if cure not in ("length penalty", "price on each word"):
            return plain
        usual = np.quantile([words(row["chosen"]) for row in self.training], [0.1, 0.9])
        counted = words_outside(*usual) if cure == "length penalty" else words
        return plus(plain, -PENALTY * float(np.std(plain(*self.start()))), counted)

    def judge_of(self, problem: str, seed: int):
        """The held-out reward model for early stopping: other labels, as many as the policy's own, given without any weakness."""
        return reward_of(self.model(problem if problem in SIZES else "careful", seed, 3))

    # --- answers ------------------------------------------------------------------------------------------------------------

    @cache  # noqa: B019
    def start(self) -> tuple[list[str], list[str]]:
        """Prompts of the trainings, and the SFT model's answers to them."""
        prompts = stages.rl_prompts(self.run, 128)
        return prompts, sample(load_policy(self.run.path("sft")), self.tokenizer, prompts, seed=7).texts

    def at_each_step(self, seed: int) -> tuple[list[list[str]], list[list[str]]]:
        """Per step of the trainings with this seed, prompts and the SFT model's answers to them: what a step is compared with, because
        the few prompts of one step may be harder or easier than those of another. All trainings with a seed have the same prompts."""
        kept = self.folder / f"steps_{seed}.json"
        steps = read_json(kept)
        if not steps["answers"]:
            policy = load_policy(self.run.path("sft"))
            steps["answers"] = [sample(policy, self.tokenizer, asked, seed=k).texts for k, asked in enumerate(steps["prompts"])]
            atomic_write_text(kept, json.dumps(steps))
        return steps["prompts"], steps["answers"]

    def _pool(self) -> tuple[list[str], list[str]]:
        """Held-out prompts, each 64 times, and an answer of the SFT model to each."""
        kept, prompts = self.folder / "pool.json", [write_prompt(r) for r in evaluation_requests(POOL) for _ in range(max(NUMBERS))]
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            atomic_write_text(kept, json.dumps(sample(load_policy(self.run.path("sft")), self.tokenizer, prompts, seed=11).texts))
        return prompts, read_json(kept)

    def best_of_n(self, problem: str, seed: int) -> dict:
        """Accuracy of a reward model, what it pays for, and its best-of-n: rubric gain of each prompt, reward in spreads."""
        prompts, answers = self.pool()
        table = lambda values: np.array(values, dtype=float).reshape(POOL, -1)  # noqa: E731
        scores, gold = table(reward_of(self.model(problem, seed))(prompts, answers)), table(rubric(prompts, answers))
        looks = {"rubric": gold, "words": table([words(a) for a in answers]), "courtesies": table([courtesies(a) for a in answers])}
        reward_model, reward = load_reward_model(self.model(problem, seed)), reward_of(self.model(problem, seed))
        before = reward(*self.start())
        start = [(np.mean(reward(asked[::4], said[::4])) - np.mean(before)) / np.std(before)
                 for asked, said in zip(*self.at_each_step(seed))]
        curves = {name: best_of_n_curve(scores, values, NUMBERS) for name, values in {"reward": scores, **looks}.items()}
        gain = curves["rubric"] - gold.mean(1, keepdims=True)
        return {"kind": "best_of_n", "problem": problem, "seed": seed,
                "accuracy": accuracy(score_differences(reward_model, self.tokenizer, self.held_out)),
                "pays_for": {name: rounded(within(scores, values)) for name, values in looks.items()},
                "start": rounded(start), "reward": rounded((curves["reward"].mean(0) - scores.mean()) / scores.std()),
                "words": rounded(curves["words"].mean(0), 1), "gain": rounded(gain)}

    # --- policies -----------------------------------------------------------------------------------------------------------

    def look(self, policy, seed: int) -> dict:
        """A policy's answers to the held-out prompts: figures of each, and the text of the first."""
        requests = evaluation_requests(PROMPTS)
        prompts = [write_prompt(r) for r in requests]
        texts = sample(policy, self.tokenizer, prompts, seed=seed, max_new_tokens=self.run.profile.max_new_tokens).texts
        own, sft = (completion_log_probs(m, self.tokenizer, prompts, texts) for m in (policy, load_policy(self.run.path("sft"))))
        return {"rubric": rounded(rubric(requests, texts)), "words": [words(t) for t in texts],
                "kl": rounded([(a - b).sum().item() for a, b in zip(own, sft)], 1), "courtesies": [courtesies(t) for t in texts],
                "empty": sum(words(t) < EMPTY for t in texts), "examples": [list(pair) for pair in zip(prompts[:1], texts[:1])]}

    def policies(self, problem: str, cure: str, seed: int) -> list[dict]:
        """Train a policy; one row, or two where the run without a cure gives early stopping too."""
        started, head = time.process_time(), {"kind": "policy", "problem": problem, "seed": seed}
        if cure == "sft":
            start = rounded([np.mean(rubric(asked, said)) for asked, said in zip(*self.at_each_step(seed))])
            return [{**head, "cure": cure, "start": start, **self.look(load_policy(self.run.path("sft")), seed)}]
        stops, reward = cure == "none" and problem in CURES, self.reward(problem, cure, seed)
        spread = np.std(before := reward(*self.start()))
        keep, asked = KeepBest("rewards/held_out/mean"), []
        gauges = {"words": lambda prompts, answers: asked.append(prompts) or [float(words(a)) for a in answers]}
        gauges |= {"held_out": self.judge_of(problem, seed)} if stops else {}
        folder = self.folder / "policy"
        log = train_policy("grpo", self.run.path("sft"), reward, stages.rl_prompts(replace(self.run, seed=seed)), folder,
                           replace(PLAN, beta=KL_WEIGHTS.get(cure, FREE)), seed, self.run.profile.max_new_tokens,
                           gauges=gauges, callbacks=[keep] * stops).rows
        columns = {"rubric": "rewards/rubric/mean", "words": "rewards/words/mean", "held_out": "rewards/held_out/mean"}
        steps = {"kl": rounded([row["kl"] * row["completions/mean_length"] for row in log]),
                 "reward": rounded([(row["rewards/reward/mean"] - np.mean(before)) / spread for row in log]),
                 **{name: rounded([row[column] for row in log]) for name, column in columns.items() if column in log[0]}}
        if not (kept := self.folder / f"steps_{seed}.json").exists():
            atomic_write_text(kept, json.dumps({"prompts": [prompts + prompts for prompts in asked], "answers": []}))
        policy = load_policy(folder)
        rows = [{**head, "cure": cure, "seconds": round(time.process_time() - started), "steps": steps, **self.look(policy, seed)}]
        if stops:
            policy.load_state_dict(keep.weights)
            rows.append({**head, "cure": "early stop", "step": keep.step, **self.look(policy, seed)})
        return rows


def within(scores: np.ndarray, values: np.ndarray) -> float:
    """Spearman's rank correlation (1904) between answers to the same prompt, mean over the prompts; both (prompts, answers). Prompts
    whose answers are all alike are left out."""
    ranks = [rankdata(table, axis=1) for table in (scores, values)]
    a, b = (table - table.mean(1, keepdims=True) for table in ranks)
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return float(((a * b).sum(1)[spread > 0] / spread[spread > 0]).mean()) if spread.any() else 0.0


def rounded(values, digits: int = 2):
    """Numbers as they go into the file."""
    return np.round(np.asarray(values, dtype=float), digits).tolist()


def plan_of(seeds: int) -> list[tuple]:
    """All rows to measure as (kind, problem, cure, seed), seed by seed."""
    todo = []
    for seed in range(seeds):
        todo += [("policy", problem, "none", seed) for problem in SIZES] + [("best_of_n", problem, "", seed) for problem in SIZES]
        todo += [("policy", "sft", "sft", seed)]
        for problem, cures in CURES.items():
            todo += [] if problem in SIZES else [("policy", problem, "none", seed), ("best_of_n", problem, "", seed)]
            todo += [("policy", problem, cure, seed) for cure in cures]
    return todo


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overoptimisation", description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="name of the run, as in run.py tutorial")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lab = Lab(open_run(options.run))
    kept = read_json(FILE) if FILE.exists() else {}
    found = kept if kept.get("setting") == lab.setting() else {"setting": lab.setting(), "rows": []}
    mark = lab.folder / "setting.json"
    if not mark.exists() or read_json(mark) != lab.setting():
        shutil.rmtree(lab.folder, ignore_errors=True)
        lab.folder.mkdir()
        atomic_write_text(mark, json.dumps(lab.setting()))
    done = {(row["kind"], row["problem"], row.get("cure", ""), row["seed"]) for row in found["rows"]}
    for kind, problem, cure, seed in plan_of(options.seeds):
        if (kind, problem, cure, seed) not in done:
            started = time.process_time()
            found["rows"] += [lab.best_of_n(problem, seed)] if kind == "best_of_n" else lab.policies(problem, cure, seed)
            write(found)
            print(f"{kind} {problem} {cure} {seed}: {time.process_time() - started:.0f} CPU s", flush=True)


def write(found: dict) -> None:
    """Write the file, one row a line."""
    setting, *rows = (json.dumps(part, separators=(",", ":")) for part in (found["setting"], *found["rows"]))
    atomic_write_text(FILE, f'{{"setting":{setting},\n"rows":[\n' + ",\n".join(rows) + "\n]}\n")


if __name__ == "__main__":
    main()
