"""The reward model: from comparisons to a number for any answer.

Bradley and Terry (1952): the probability that a person prefers answer a to answer b is the logistic function of r(a) - r(b).
"""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from .models import NEW_HEAD, chat, load_reward_model, load_tokenizer, rewards
from .profiles import Training
from .statistics import share
from .training import History, length_grouped, run_trainer, trainer_settings

MAX_LENGTH = 256
HEAD = 100.0  # how many times faster the new head learns than the rest


def reading_template(template: str) -> str:
    """The chat template with which a reward model reads: after the answer comes the mark of the person's next turn.

    A reward model's score is read at the last token. At the end token a language model only knows that the turn is over; at the
    mark of the next turn it is about to predict what the person says to the answer, so what it knows of the answer is there.
    Templates without our `<|user|>` mark are left as they are.
    """
    if "'<|' + message['role'] + '|>'" not in template:
        return template
    return template + "{% if messages[-1]['role'] == 'assistant' %}{{ '<|user|>' }}{% endif %}"


def train_reward_model(start: str | Path, rows: list[dict], folder: str | Path, training: Training, seed: int = 0,
                       title: str = "Reward model") -> History:
    """Train a reward model from the policy in `start` on preferences (`prompt`, `chosen`, `rejected`) with TRL's RewardTrainer.

    The new head learns a hundred times faster than the rest: what the policy knows of an answer is there, and a body that moves before
    the head points anywhere forgets it (Kumar et al., 2022, arXiv:2202.10054).
    """
    rows = length_grouped(rows, ("prompt", "chosen", "rejected"), training.batch_size, seed)
    data = Dataset.from_list([{"chosen": chat(r["prompt"], r["chosen"]), "rejected": chat(r["prompt"], r["rejected"])} for r in rows])
    set_seed(seed)  # the new output head is drawn at random
    model = load_reward_model(start)
    tokenizer = load_tokenizer(start)
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = reading_template(tokenizer.chat_template)
    settings = trainer_settings(folder, seed, training, max_length=MAX_LENGTH, center_rewards_coefficient=0.01)
    body = [weights for name, weights in model.named_parameters() if name != NEW_HEAD]
    optimiser = torch.optim.AdamW([{"params": [model.score.weight], "lr": HEAD * training.learning_rate},
                                   {"params": body, "lr": training.learning_rate}], weight_decay=0.0)
    trainer = RewardTrainer(model=model, processing_class=tokenizer, train_dataset=data, args=RewardConfig(**settings),
                            optimizers=(optimiser, None))
    return run_trainer(trainer, History(title), folder)


def shuffled(rows: list[dict], seed: int = 0) -> list[dict]:
    """The control: the same pairs with the label of each drawn by a coin."""
    flip = np.random.default_rng(seed).random(len(rows)) < 0.5
    return [dict(row, chosen=row["rejected"], rejected=row["chosen"]) if f else row for row, f in zip(rows, flip)]


def score_differences(model, tokenizer, rows: list[dict]) -> np.ndarray:
    """r(chosen) - r(rejected) of each row."""
    prompts = [row["prompt"] for row in rows]
    scores = rewards(model, tokenizer, prompts * 2, [r["chosen"] for r in rows] + [r["rejected"] for r in rows])
    return np.array(scores[: len(rows)]) - np.array(scores[len(rows):])


def accuracy(differences) -> dict:
    """Share of pairs in which the chosen answer has the higher reward, as an estimate with its interval."""
    return share(np.asarray(differences) > 0)
