"""PPO, GRPO and RLOO side by side: same SFT model, same reward model, same number of scored answers, several seeds.

    python -m benchmarks.ppo_side_by_side [--run NAME] [--seeds 5]

writes `ppo_side_by_side.json` beside this file, which notebook 07 shows. The run (default: the one that the environment names) has to
have its SFT and reward model. Every method trains with its plan in the profile, only its steps are set so that it gets as many answers
scored as PPO's plan does. Each training is written down when it is done: the same command takes up a broken series where it stopped,
and starts anew where models or plans are others.
"""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from rlhf_helpers.formats import read_json, write_json
from rlhf_helpers.models import completion_log_probs, load_policy, load_reward_model, load_tokenizer, rewards, sample
from rlhf_helpers.ppo import train_ppo
from rlhf_helpers.rl import train_policy
from rlhf_helpers.runs import Run, fingerprint, open_run
from rlhf_helpers.stages import rl_prompts
from rlhf_helpers.world.grammar import write_prompt
from rlhf_helpers.world.judge import judge
from rlhf_helpers.world.splits import evaluation_requests

FILE = Path(__file__).with_suffix(".json")
METHODS = ("ppo", "grpo", "rloo")
PROMPTS = 120  # held out, the same for all; another sampled answer for each seed


def setting(run: Run) -> dict:
    """What the figures depend on: models (by a hash of their weights), plans, number of answers scored and of prompts judged."""
    return {"models": {stage: fingerprint(run.path(stage)) for stage in ("sft", "reward_model")}, "answers": answers(run),
            "prompts": PROMPTS, "plans": {method: asdict(plan_of(run, method)) for method in METHODS}}


def answers(run: Run) -> int:
    """How many answers each method may sample and have scored: as many as the profile's PPO."""
    return run.profile.ppo.steps * run.profile.ppo.batch_size


def plan_of(run: Run, method: str):
    """The profile's plan with so many steps that it uses up these answers, each of which is learned from."""
    plan = getattr(run.profile, method)
    plan = replace(plan, steps=answers(run) // plan.batch_size)
    return plan if method == "ppo" else replace(plan, sampled=0)


def train(run: Run, method: str, seed: int, folder: Path) -> list[dict]:
    """Train one policy into the folder and give its log."""
    given = (run.path("sft"), run.path("reward_model"), rl_prompts(replace(run, seed=seed)), folder, plan_of(run, method), seed,
             run.profile.max_new_tokens)
    return (train_ppo(*given) if method == "ppo" else train_policy(method, *given)).rows


def look(run: Run, folder: Path, seed: int) -> dict[str, float]:
    """Rubric (points), reward, KL from SFT (nats an answer) and words an answer of a policy, means over the held-out prompts."""
    requests = evaluation_requests(PROMPTS)
    prompts, policy, tokenizer = [write_prompt(r) for r in requests], load_policy(folder), load_tokenizer(folder)
    texts = sample(policy, tokenizer, prompts, seed=seed, max_new_tokens=run.profile.max_new_tokens).texts
    own, start = (completion_log_probs(model, tokenizer, prompts, texts) for model in (policy, load_policy(run.path("sft"))))
    found = {"rubric": [judge(request, text).score for request, text in zip(requests, texts)],
             "reward": rewards(load_reward_model(run.path("reward_model")), tokenizer, prompts, texts),
             "kl": [(a - b).sum().item() for a, b in zip(own, start)], "words": [len(text.split()) for text in texts]}
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ppo_side_by_side", description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="name of the run, as in run.py tutorial")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = open_run(options.run)
    kept = read_json(FILE) if FILE.exists() else {}
    found = kept if kept.get("setting") == setting(run) else {"setting": setting(run), "rows": []}
    done = {(row["method"], row["seed"]) for row in found["rows"]}
    for seed in range(options.seeds):
        for method in ("sft", *METHODS):
            if (method, seed) not in done:
                found["rows"].append(one(run, method, seed))
                write_json(FILE, found)
                print(found["rows"][-1], flush=True)


def one(run: Run, method: str, seed: int) -> dict:
    """The row of one method and seed. `seconds` are of the processor, for the training alone."""
    with TemporaryDirectory() as folder:
        started = time.process_time()
        if method != "sft":
            train(run, method, seed, Path(folder) / method)
        seconds = round(time.process_time() - started, 1)
        return {"method": method, "seed": seed, **look(run, run.path("sft") if method == "sft" else Path(folder) / method, seed),
                "seconds": seconds}


if __name__ == "__main__":
    main()
