"""What every TRL trainer of the series is told, in one place, and how a log and the state of a training are kept.

The settings answer to measured traps: TRL turns bf16 and activation checkpointing on by default, which a CPU cannot or should
not do; models are handed over as folders, because TRL patches a model in memory so that copies of it compute with the original.
"""

import hashlib
import logging
import math
import os
import random
import warnings
from pathlib import Path
from statistics import fmean

import datasets
import torch
import transformers
from transformers import PrinterCallback, TrainerCallback

from .notebook import Progress
from .profiles import Training

GPU = torch.cuda.is_available()
BF16 = GPU and torch.cuda.get_device_capability()[0] >= 8
ROWS_AT_ONCE = 8  # a step's rows go through the model in parts, their gradients added up: the same step in half the memory


def quiet() -> None:
    """Keep library chatter that a learner cannot act on out of the notebooks; errors still show."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"trl|transformers|torch|accelerate")


def trainer_settings(folder: str | Path, seed: int, training: Training | None = None, rows_at_once: int = ROWS_AT_ONCE, **more) -> dict:
    """Keyword arguments for any TRL config: 32-bit on a CPU, nothing reported, nothing saved on the way, every step logged."""
    quiet()
    settings = dict(
        output_dir=str(folder), seed=seed, bf16=BF16, use_cpu=not GPU, activation_checkpointing=False, report_to="none",
        save_strategy="no", dataloader_pin_memory=GPU, logging_steps=1, disable_tqdm=True, lr_scheduler_type="linear",
        warmup_steps=5, max_grad_norm=1.0)
    if training is not None:
        parts = math.ceil(training.batch_size / rows_at_once)
        settings |= dict(train_sampling_strategy="sequential", learning_rate=training.learning_rate,
                         per_device_train_batch_size=math.ceil(training.batch_size / parts), gradient_accumulation_steps=parts,
                         num_train_epochs=training.epochs, max_steps=training.steps)
    return settings | more


class History(TrainerCallback):
    """Keeps what a trainer logs, one dict a step in `rows`, and shows a progress bar."""

    def __init__(self, title: str):
        self.rows: list[dict] = []
        self.progress = Progress(title)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "train_runtime" not in logs:
            self.rows.append({"step": state.global_step, **logs})
            name = next((name for name in ("reward", "loss") if name in logs), None)
            self.progress.update(state.global_step, state.max_steps, f"{name} {logs[name]:.3f}" if name else "")

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.done()

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged quantity."""
        rows = [row for row in self.rows if name in row]
        return [row["step"] for row in rows], [float(row[name]) for row in rows]


def run_trainer(trainer, history: History, folder: str | Path) -> History:
    """Train with the history attached and save model and tokenizer into `folder`."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(history)
    trainer.train()
    trainer.save_model(str(folder))
    trainer.processing_class.save_pretrained(str(folder))
    return history


def length_grouped(rows: list[dict], fields: tuple[str, ...], batch_size: int, seed: int) -> list[dict]:
    """The rows in an order in which batches hold rows of like length, batches in random order: far less padding.

    Rows of the same `group` (the pairs of one ranking) stand side by side, so that a batch holds them all unless it ends among them:
    their answers are the same, and in update after update they would soon be known by heart (Ouyang et al., 2022, section 3.5). For
    trainers that then read the rows in sequence (`train_sampling_strategy="sequential"`, set in `trainer_settings`). A last batch that
    is not full stays last, so that the others keep their places.
    """
    if not rows:
        raise ValueError("there are no rows to train on")
    dice, groups = random.Random(seed), {}
    for place, row in enumerate(dice.sample(rows, len(rows))):
        groups.setdefault(row.get("group") or place, []).append(row)
    by_length = sorted(groups.values(), key=lambda group: fmean(sum(len(row[f]) for f in fields) for row in group))
    ordered = [row for group in by_length for row in group]
    batches = [ordered[k: k + batch_size] for k in range(0, len(ordered), batch_size)]
    full = len(rows) // batch_size
    return [row for batch in dice.sample(batches[:full], full) + batches[full:] for row in batch]


def smooth(values: list[float], window: int = 5) -> list[float]:
    """Running mean over up to `window` values, the same length as the input."""
    return [sum(values[max(0, k - window + 1): k + 1]) / len(values[max(0, k - window + 1): k + 1]) for k in range(len(values))]


def write_checkpoint(path: str | Path, setting: dict, state: dict) -> None:
    """Write what a training is (`setting`: what may not differ when it is taken up again) and how far it is (`state`)."""
    aside = Path(path).with_name(f".{Path(path).name}.part")
    torch.save({"setting": setting, "state": state}, aside)
    os.replace(aside, path)


def read_checkpoint(path: str | Path, setting: dict, device) -> dict:
    """The state that `write_checkpoint` wrote. Raises ValueError if the file is damaged or its setting another, and says which part."""
    try:
        kept = torch.load(path, map_location=device, weights_only=True)
        state, same = kept["state"], {name: kept["setting"][name] == value for name, value in setting.items()}
    except Exception as problem:  # torch names no kinds
        raise ValueError(f"{Path(path).name} is damaged or no checkpoint of this training: delete it, or name another") from problem
    if not all(same.values()):
        raise ValueError(f"{Path(path).name} is of a run with another {', '.join(name for name in same if not same[name])}: delete it, or "
                         "name another")
    return state


def digest(model: torch.nn.Module) -> str:
    """What tells a model's weights, and their names, from others."""
    found = hashlib.sha256()
    for name, value in model.named_parameters():
        found.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()
