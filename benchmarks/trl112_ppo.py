"""TRL 1.12's PPOTrainer under the same clock: `python -m benchmarks.trl112_ppo JOB` in an environment with TRL 1.12, see `watch`.

Its settings are those of our plan wherever it has them: steps and answers a step, learning rate with its fall to 0, Adam's epsilon, epochs,
minibatches, gamma, lambda, both clips, weight of the value loss, KL weight, temperature, whitened advantages. It knows no value head on
the policy, which ours has; its value model starts as the reward model. An unfinished answer gets 1 less, ours gets -1 in place of its
score; it has no bound on the gradient and none on the KL of a step. Answers are sampled all at once, the fastest way it has. It wants a
reward *model* that reads policy tokens; ours reads chats in another template, so its function `get_reward` gives, for the reward model
alone, the scores of the very function that the others are trained on.
"""

import sys
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.watch import Watch, do_job
from rlhf_helpers.models import load_policy, load_reward_model, load_tokenizer, prompt_tokens, rewards
from rlhf_helpers.training import quiet


class Done(Exception):
    """The target is reached; TRL 1.12's loop takes no other sign."""


class _Watch(Watch):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.step(model.policy, state.global_step):
            raise Done


def train(job: dict) -> Watch:
    """One training with the plan of our PPO."""
    quiet()
    plan, tokenizer = job["plan"], load_tokenizer(job["sft"])
    watch = _Watch(job)
    model, reading = load_reward_model(job["reward_model"]), load_tokenizer(job["reward_model"])
    asked = {tuple(prompt_tokens(tokenizer, prompt)): prompt for prompt in job["prompts"]}
    original = ppo_trainer.get_reward

    def get_reward(reader, ids, pad, lead):
        if reader is not model:
            return original(reader, ids, pad, lead)
        wanted = [asked[tuple(token for token in row if token != pad)] for row in ids[:, :lead].tolist()]
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids[:, lead:]]
        return None, torch.tensor(rewards(model, reading, wanted, texts), device=ids.device), None

    ppo_trainer.get_reward = get_reward
    data = Dataset.from_list([{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in asked])
    try:
        with TemporaryDirectory() as folder:
            PPOTrainer(args=PPOConfig(**settings(plan, folder, job["seed"], job["max_new_tokens"])), processing_class=tokenizer,
                       model=load_policy(job["sft"]), ref_model=load_policy(job["sft"]), reward_model=model,
                       value_model=load_reward_model(job["reward_model"]), train_dataset=data, eval_dataset=data.select(range(8)),
                       callbacks=[watch]).train()
    except Done:
        pass
    finally:
        ppo_trainer.get_reward = original
    return watch


def settings(plan: dict, folder: str, seed: int, max_new_tokens: int) -> dict:
    """Our plan in the words of PPOConfig."""
    gpu, rows = torch.cuda.is_available(), plan["rows_at_once"]
    return dict(
        output_dir=folder, seed=seed, bf16=gpu, use_cpu=not gpu, gradient_checkpointing=False, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1, num_sample_generations=0, total_episodes=plan["steps"] * plan["batch_size"],
        per_device_train_batch_size=rows, gradient_accumulation_steps=plan["batch_size"] // rows,
        local_rollout_forward_batch_size=plan["batch_size"], response_length=max_new_tokens, temperature=plan["temperature"],
        learning_rate=plan["learning_rate"], lr_scheduler_type="linear", warmup_steps=0, adam_epsilon=1e-5, weight_decay=0.0,
        num_ppo_epochs=plan["epochs"], num_mini_batches=plan["minibatches"], gamma=plan["discount"], lam=plan["trace"],
        cliprange=plan["clip"], cliprange_value=plan["value_clip"], vf_coef=plan["value_weight"], kl_coef=plan["beta"],
        stop_token="eos", missing_eos_penalty=None if plan["unfinished_score"] is None else -plan["unfinished_score"])


if __name__ == "__main__":
    do_job(sys.argv[1], train)
