"""The clock of a training, with looks at held-out answers that do not count: used here and in the environment of TRL 1.12.

A job is a JSON file: `method`; `sft` and `reward_model` (folders); `plan` (settings of the method); `max_new_tokens`; `held_out`
(prompts); `every` (answers between two looks); `target` (rubric points) and `start` (the SFT model's); `seed` and its `prompts`; `out`
(the file that the row is written to).
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from rlhf_helpers.models import load_tokenizer, sample
from rlhf_helpers.world.judge import judge

WINDOW = 3  # looks whose mean has to reach the target: one alone is too noisy


class Watch(TrainerCallback):
    """Times one training and looks at it: rubric (points, mean over the held-out prompts) after every so many answers.

    Seconds are counted from `start`, or from the moment that a trainer begins, without those of the looks: `cpu` of the processor over
    all threads, `wall` as the clock on the wall shows them.
    """

    def __init__(self, job: dict):
        self.job, self.answers_a_step = job, job["plan"]["batch_size"]
        self.tokenizer, self.looks, self.reached, self.answers = load_tokenizer(job["sft"]), [], None, 0

    def start(self) -> None:
        self.began = now()

    def step(self, policy, steps: int) -> bool:
        """Take note that `steps` updates are done; True if the target is reached, and the training may end."""
        ended = now()
        self.answers = steps * self.answers_a_step
        self.spent = {name: round(ended[name] - self.began[name], 2) for name in ended}
        if self.answers >= (self.looks[-1]["answers"] if self.looks else 0) + self.job["every"]:
            self.looks.append({"answers": self.answers, **self.spent, "rubric": self.rubric(policy)})
            if self.reached is None and self.level() >= self.job["target"]:
                self.reached = {"answers": self.answers, **self.spent}
        looked = now()
        self.began = {name: self.began[name] + looked[name] - ended[name] for name in ended}
        return self.reached is not None

    def rubric(self, policy) -> float:
        training = policy.training
        policy.eval()
        texts = sample(policy, self.tokenizer, self.job["held_out"], max_new_tokens=self.job["max_new_tokens"],
                       seed=10_000 * self.job["seed"] + self.answers).texts
        policy.train(training)
        return round(sum(judge(prompt, text).score for prompt, text in zip(self.job["held_out"], texts)) / len(texts), 3)

    def level(self) -> float:
        """Mean of the last looks; before there are enough, the SFT model's level stands for those that lack."""
        last = [look["rubric"] for look in self.looks[-WINDOW:]]
        return sum(last + [self.job["start"]] * (WINDOW - len(last))) / WINDOW

    def row(self) -> dict:
        """What is kept of the training: seconds and answers to the target (None if it was not reached) and to its end."""
        return {"method": self.job["method"], "seed": self.job["seed"], "to_target": self.reached, "answers": self.answers, **self.spent,
                "level": round(self.level(), 3), "looks": self.looks,
                **({"peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 1e6)} if torch.cuda.is_available() else {})}

    # --- as a callback of a trainer of transformers -----------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        self.start()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.step(model, state.global_step):
            control.should_training_stop = True


def now() -> dict[str, float]:
    """Seconds of the processor and on the wall, with all work that a GPU was given done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"cpu": time.process_time(), "wall": time.perf_counter()}


def do_job(path: str, train: Callable[[dict], Watch]) -> None:
    """Train as the job says and write its row."""
    torch.set_num_threads(1)
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    Path(job["out"]).write_text(json.dumps(train(job).row()), encoding="utf-8")
