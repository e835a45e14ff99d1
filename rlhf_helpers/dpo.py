"""Direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290): from comparisons to a policy.

Offline the pairs are given, and no reward model is needed. Online the policy makes its own pairs, and a reward labels them.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from .models import chat, load_policy, load_tokenizer, sample
from .profiles import OnlineDPO, Training
from .rejection import asked_in_rounds
from .rewards import Reward, finite, reward_of
from .training import History, length_grouped, run_trainer, trainer_settings

MAX_LENGTH = 256
PAIRS_AT_ONCE = 4  # two answers each, read by policy and reference: the same step in a fifth less memory than with eight


def train_dpo(start: str | Path, rows: list[dict], folder: str | Path, training: Training, beta: float, seed: int = 0,
              title: str = "DPO") -> History:
    """DPO from the policy in `start`, which is also the reference, on preferences (`prompt`, `chosen`, `rejected`).

    Raises:
        RuntimeError: after the first step, if its loss is not ln 2, which means that policy and reference were not the same model.
    """
    data = _dataset(length_grouped(rows, ("prompt", "chosen", "rejected"), training.batch_size, seed))
    settings = trainer_settings(folder, seed, training, PAIRS_AT_ONCE, max_length=MAX_LENGTH, beta=beta)
    trainer = DPOTrainer(model=str(start), processing_class=load_tokenizer(start), train_dataset=data, args=DPOConfig(**settings),
                         callbacks=[_StartsAtLn2()])
    return run_trainer(trainer, History(title), folder)


class _StartsAtLn2(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step == 1 and "loss" in logs and not abs(logs["loss"] - math.log(2)) <= 1e-3:
            raise RuntimeError(f"the first DPO loss is {logs['loss']:.4f}, not ln 2 = 0.6931: "
                               "policy and reference differ; pass the folder of the SFT model")


def best_and_worst(prompts: Sequence[str], answers: Sequence[str], scores: np.ndarray, allowed: np.ndarray,
                   one_in: int) -> list[tuple[float, dict]]:
    """The best answers to each prompt against its worst ones, as preferences, each with the difference of its scores; widest first.

    One answer in `one_in` is taken from either end, at least one. Answers that are not `allowed` are never preferred.
    """
    of_prompt, pairs = defaultdict(list), []
    for k in np.argsort(-scores, kind="stable"):
        of_prompt[prompts[k]].append(k)
    for prompt, ranked in of_prompt.items():
        number = max(1, len(ranked) // one_in)
        best = [k for k in ranked if allowed[k]][:number]
        worst = [k for k in reversed(ranked) if k not in best][:number]
        pairs += [(scores[b] - scores[w], {"prompt": prompt, "chosen": answers[b], "rejected": answers[w]}) for b, w in zip(best, worst)
                  if scores[b] > scores[w] and answers[b] != answers[w]]
    return sorted(pairs, key=lambda pair: -pair[0])


def train_online(start: str | Path, reward: str | Path | Reward, prompts: list[str], folder: str | Path, plan: OnlineDPO, beta: float,
                 seed: int = 0, max_new_tokens: int = 96) -> list[History]:
    """DPO in rounds, each on new pairs: the policy answers, a reward labels its best answers against its worst, and again.

    In rounds as in Xu et al. (2023, arXiv:2312.16682), the best against the worst as in Dong et al. (2024, arXiv:2405.07863). The reference
    of each round is the policy that gave its answers; steps shrink from round to round. An answer that was cut off counts as the worst.

    Raises:
        RuntimeError: if in some round no answer beat another: the policy gives the same answer always, or the reward is constant.
    """
    tokenizer, scored, policy, histories = load_tokenizer(start), reward if callable(reward) else reward_of(reward), start, []
    for number, asked in enumerate(asked_in_rounds(prompts, plan)):
        said = sample(load_policy(policy), tokenizer, asked, seed=1000 * seed + number, max_new_tokens=max_new_tokens)
        finished, scores = np.array(said.finished), np.array(finite(scored, asked, said.texts))
        pairs = best_and_worst(asked, said.texts, np.where(finished, scores, scores.min()), finished, plan.one_in)
        if not pairs:
            raise RuntimeError(f"round {number + 1} found no pair: no answer to any of {plan.prompts} prompts has a higher reward "
                               "than another")
        training = replace(plan.training, learning_rate=plan.training.learning_rate * (1 - number / plan.rounds))
        histories.append(train_dpo(policy, [pair for _, pair in pairs], folder, training, beta, seed + number,
                                   title=f"Online DPO on {len(pairs)} pairs, round {number + 1}"))
        policy = folder
    return histories


def trl_metrics(policy: str | Path, reference: str | Path, rows: list[dict], beta: float) -> dict:
    """What TRL's DPOTrainer logs for one batch of all these rows (`loss`, `rewards/margins`, `logps/chosen`, ...), nothing learned.

    The library's values to check a formula against.
    """
    at_once = max(k for k in range(1, PAIRS_AT_ONCE + 1) if len(rows) % k == 0)  # equal parts, whose means have the mean of all
    with TemporaryDirectory() as folder:
        settings = trainer_settings(folder, 0, Training(0.0, len(rows), steps=1), at_once, max_length=MAX_LENGTH, beta=beta)
        trainer = DPOTrainer(model=str(policy), ref_model=load_policy(reference), processing_class=load_tokenizer(policy),
                             train_dataset=_dataset(rows), args=DPOConfig(**settings))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]


def _dataset(rows: list[dict]) -> Dataset:
    return Dataset.from_list([{"prompt": chat(r["prompt"]), "chosen": [{"role": "assistant", "content": r["chosen"]}],
                               "rejected": [{"role": "assistant", "content": r["rejected"]}]} for r in rows])
