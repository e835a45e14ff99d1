"""One policy training under the clock: `python -m benchmarks.policies JOB`, see `watch`. `bench` calls it.

Methods: `ppo` (this repository's), `grpo` and `rloo` (TRL's trainers with the less padding of `rlhf_helpers.rl`), `trl_grpo` and
`trl_rloo` (the same settings, TRL's trainers as they are).
"""

import sys
from tempfile import TemporaryDirectory

from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.watch import Watch, do_job
from rlhf_helpers import rl
from rlhf_helpers.models import load_policy, load_reward_model, load_tokenizer, rewards
from rlhf_helpers.ppo import PPO
from rlhf_helpers.profiles import ProximalPolicyOptimisation, ReinforcementLearning
from rlhf_helpers.training import History, quiet

TRAINERS = dict(rl.METHODS, trl_grpo=(GRPOTrainer, GRPOConfig), trl_rloo=(RLOOTrainer, RLOOConfig))


def train(job: dict) -> Watch:
    """One training of the job's method."""
    watch = Watch(job)
    with TemporaryDirectory() as folder:
        (_ppo if job["method"] == "ppo" else _trl)(job, folder, watch)
    return watch


def _ppo(job, folder, watch):
    """As `train_ppo` does it, but for saving."""
    quiet()
    set_seed(job["seed"])
    plan, start, reward_model = ProximalPolicyOptimisation(**job["plan"]), job["sft"], job["reward_model"]
    model, reading = load_reward_model(reward_model), load_tokenizer(reward_model)
    ppo = PPO(load_policy(start), load_tokenizer(start), lambda asked, answers: rewards(model, reading, asked, answers), job["prompts"],
              plan, folder, reference=load_policy(start), max_new_tokens=job["max_new_tokens"], seed=job["seed"])
    watch.start()
    ppo.train(History("PPO"), [lambda row, policy: watch.step(policy, row["step"])])


def _trl(job, folder, watch):
    rl.METHODS[job["method"]] = TRAINERS[job["method"]]
    rl.train_policy(job["method"], job["sft"], job["reward_model"], job["prompts"], folder, ReinforcementLearning(**job["plan"]),
                    job["seed"], job["max_new_tokens"], callbacks=[watch])


if __name__ == "__main__":
    do_job(sys.argv[1], train)
