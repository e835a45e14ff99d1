"""Reinforcement learning from the reward model with TRL: RLOO (Ahmadian et al., 2024, arXiv:2402.14740) and GRPO (Shao et al.,
2024, arXiv:2402.03300)."""

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import pad
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from .models import chat, load_tokenizer, sample_tokens
from .profiles import ReinforcementLearning
from .rewards import Reward, finite, reward_of
from .training import History, run_trainer, smooth, trainer_settings
from .world.judge import judge

ANSWERS_AT_ONCE = 16  # learned from together, their gradients added up: the same step in three quarters of the memory
ROWS_AT_ONCE = 4  # of like length go through the model together; with eight there was more padding, and a step took a tenth longer


class _Lean:
    """TRL's trainers with less padding, which took a third of each step here, and with more answers to choose from.

    Sampling: rows that have ended leave the batch, so a few long answers do not hold up the many short ones. Log-probabilities: rows
    go through the model beside others of like length, without the columns that are padding in all of them. Both compute what TRL does.
    If `sampled` is more than the answers that a group learns from, those whose rewards differ most are kept: to sample and score an
    answer costs a fraction of learning from it (Xu et al., 2025, arXiv:2504.13818).
    """

    sampled, reward = 0, None  # answers drawn for each prompt, and by what they are chosen; `train_policy` sets both

    def _generate(self, prompts, *rest, **more):
        self._asked = [turns[-1]["content"] for turns in prompts]
        return super()._generate(prompts, *rest, **more)

    def _completions(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        group, rows = self.num_generations, len(prompt_ids)
        rounds = max(1, self.sampled // group)
        said = self._sample(prompt_ids * rounds)  # in one batch, so that each prompt is read once
        if rounds == 1:
            return said
        scores = self.reward(self._asked * rounds, self.processing_class.batch_decode(said, skip_special_tokens=True))
        same_prompt = [[start + k for start in range(0, len(said), rows) for k in range(first, first + group)]
                       for first in range(0, rows, group)]
        return [said[places[k]] for places in same_prompt for k in most_different([scores[place] for place in places], group)]

    def _sample(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        model, generator = self.accelerator.unwrap_model(self.model), torch.Generator().manual_seed(torch.randint(2**62, ()).item())
        model.eval()
        try:
            return sample_tokens(model, self.processing_class, prompt_ids, temperature=self.args.temperature,
                                 max_new_tokens=self.args.max_completion_length, generator=generator)
        finally:
            model.train()

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **more):
        order, parts = attention_mask[:, -logits_to_keep:].sum(1).argsort(), []
        for rows in order.split(ROWS_AT_ONCE):
            used = attention_mask[rows].any(0).nonzero()
            end = max(used[-1].item() + 1, input_ids.shape[1] - logits_to_keep + 1)
            columns, behind = slice(used[0], end), input_ids.shape[1] - end
            found = super()._get_per_token_logps_and_entropies(
                model, input_ids[rows, columns], attention_mask[rows, columns], logits_to_keep - behind, **more)
            parts.append([value if value is None else pad(value, (0, behind)) for value in found[:2]])
        logps, entropies = (None if column[0] is None else torch.cat(column)[order.argsort()] for column in zip(*parts))
        return logps, entropies, None


class _RLOO(_Lean, RLOOTrainer):
    def _generate_single_turn(self, prompt_ids, *rest, **more):
        return self._completions(prompt_ids)


class _GRPO(_Lean, GRPOTrainer):
    def _generate_single_turn(self, prompt_ids, *rest, **more):
        return self._completions(prompt_ids), None


METHODS = {"rloo": (_RLOO, RLOOConfig), "grpo": (_GRPO, GRPOConfig)}


def most_different(rewards: Sequence[float], number: int) -> list[int]:
    """The places of those `number` rewards that have the largest variance: some of the lowest and some of the highest."""
    order = np.argsort(rewards, kind="stable").tolist()
    ways = [order[:low] + order[len(order) - number + low:] for low in range(number + 1)]
    return max(ways, key=lambda places: np.var([rewards[k] for k in places]))


class _LastScores:
    """A reward that remembers what it was last asked for, since TRL asks again for the answers that were chosen by it."""

    def __init__(self, reward: Reward):
        self.reward, self.known = reward, {}

    def __call__(self, prompts, completions) -> list[float]:
        pairs = list(zip(prompts, completions, strict=True))
        if not self.known.keys() >= set(pairs):
            self.known = dict(zip(pairs, finite(self.reward, prompts, completions)))
        return [self.known[pair] for pair in pairs]


def rubric(prompts, completions) -> list[float]:
    """The judge's score of each answer. It is logged beside the reward with weight 0: training never sees it."""
    return [judge(prompt, completion).score for prompt, completion in zip(prompts, completions)]


def as_trl(name: str, reward: Reward):
    """A reward as TRL calls it, with lists of chat turns, under the name by which TRL logs it."""
    def called(prompts, completions, **columns) -> list[float]:
        return list(reward(*([turns[-1]["content"] for turns in side] for side in (prompts, completions))))

    called.__name__ = name
    return called


class KeepBest(TrainerCallback):
    """Early stopping: keeps the weights that the policy had when the running mean of a logged column was highest.

    `step` is the number of updates behind `weights`, a state dict. A step's answers were sampled before its update.
    """

    def __init__(self, column: str, window: int = 5):
        self.column, self.window, self.values, self.step, self.weights = column, window, [], 0, None

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if self.column in (logs or {}):
            self.values.append(float(logs[self.column]))
            running = smooth(self.values, self.window)
            if self.weights is None or running[-1] >= max(running):
                self.step, self.weights = state.global_step, {name: w.detach().clone() for name, w in model.state_dict().items()}


def train_policy(method: str, start: str | Path, reward: str | Path | Reward, prompts: list[str], folder: str | Path,
                 plan: ReinforcementLearning, seed: int = 0, max_new_tokens: int = 96, title: str = "", *,
                 gauges: dict[str, Reward] | None = None, callbacks=()) -> History:
    """Optimise the policy in `start` against a reward with TRL.

    Args:
        method: `rloo` or `grpo`.
        reward: a reward model's folder, or a function (prompts, completions) -> one number for each.
        plan: steps, answers a step, answers a prompt, learning rate and KL weight.
        gauges: functions like the reward, logged as `rewards/<name>/mean` and never trained on; `rubric` is always among them.
        callbacks: transformers' TrainerCallbacks, such as `KeepBest`.

    Returns:
        the log: among others `reward`, `kl`, `entropy`, `completions/mean_length`, `rewards/rubric/mean`.
    """
    if method not in METHODS:
        raise KeyError(f"no method {method!r}; choose one of: {', '.join(METHODS)}")
    if not prompts:
        raise ValueError("there are no prompts to train on")
    if plan.sampled % plan.generations:
        raise ValueError(f"the plan samples {plan.sampled} answers to a prompt to learn from {plan.generations}: `sampled` has to be a "
                         "multiple of `generations`, or 0")
    trainer_class, config_class = METHODS[method]
    scored = _LastScores(reward if callable(reward) else reward_of(reward))
    functions = {"reward": scored, "rubric": rubric, **(gauges or {})}
    rows = math.gcd(plan.batch_size, ANSWERS_AT_ONCE)
    settings = trainer_settings(
        folder, seed, learning_rate=plan.learning_rate, per_device_train_batch_size=rows,
        gradient_accumulation_steps=plan.batch_size // rows, max_steps=plan.steps,
        num_generations=plan.generations, beta=plan.beta, max_completion_length=max_new_tokens, temperature=1.0,
        disable_dropout=True, mask_truncated_completions=True, reward_weights=[1.0] + [0.0] * (len(functions) - 1))
    trainer = trainer_class(
        model=str(start), reward_funcs=[as_trl(name, function) for name, function in functions.items()],
        processing_class=load_tokenizer(start), callbacks=list(callbacks),
        train_dataset=Dataset.from_list([{"prompt": chat(p)} for p in prompts]), args=config_class(**settings))
    trainer.sampled, trainer.reward = plan.sampled, scored
    return run_trainer(trainer, History(title or method.upper()), folder)


def trl_advantages(method: str, start: str | Path, given: list[list[float]]) -> list[list[float]]:
    """The advantages that TRL's trainer computes when its answers get these rewards, both (prompts, generations), without KL.

    One step at learning rate 0, on answers that nobody reads: the library's value to check a formula against.
    """
    trainer_class, config_class = METHODS[method]
    flat, generations = [value for row in given for value in row], len(given[0])

    def fixed(prompts, completions, **columns) -> list[float]:
        return flat

    with TemporaryDirectory() as folder:
        settings = trainer_settings(folder, 0, learning_rate=0.0, per_device_train_batch_size=len(flat), max_steps=1,
                                    num_generations=generations, beta=0.0, max_completion_length=2, disable_dropout=True)
        trainer = trainer_class(model=str(start), reward_funcs=fixed, processing_class=load_tokenizer(start),
                                train_dataset=Dataset.from_list([{"prompt": chat("Hello")}] * len(given)), args=config_class(**settings))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    flat = list(trainer._logs["advantages"])
    return [flat[k: k + generations] for k in range(0, len(flat), generations)]
