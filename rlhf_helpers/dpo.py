"""Direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290): from comparisons to a policy without a reward model."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from .models import chat, load_policy, load_tokenizer
from .profiles import Training
from .training import History, length_grouped, run_trainer, trainer_settings

MAX_LENGTH = 256
PAIRS_AT_ONCE = 4  # two answers each, read by policy and reference: the same step in a fifth less memory than with eight


def train_dpo(start: str | Path, rows: list[dict], folder: str | Path, training: Training, beta: float, seed: int = 0,
              title: str = "DPO") -> History:
    """DPO from the policy in `start`, which is also the reference, on preferences (`prompt`, `chosen`, `rejected`).

    Raises:
        RuntimeError: if the first loss is not ln 2, which means that policy and reference were not the same model.
    """
    data = _dataset(length_grouped(rows, ("prompt", "chosen", "rejected"), training.batch_size, seed))
    settings = trainer_settings(folder, seed, training, PAIRS_AT_ONCE, max_length=MAX_LENGTH, beta=beta)
    trainer = DPOTrainer(model=str(start), processing_class=load_tokenizer(start), train_dataset=data, args=DPOConfig(**settings))
    history = run_trainer(trainer, History(title), folder)
    if abs(history.rows[0]["loss"] - math.log(2)) > 1e-3:
        raise RuntimeError(f"the first DPO loss is {history.rows[0]['loss']:.4f}, not ln 2 = 0.6931: "
                           "policy and reference differ; pass the folder of the SFT model")
    return history


def trl_metrics(policy: str | Path, reference: str | Path, rows: list[dict], beta: float) -> dict:
    """What TRL's DPOTrainer logs for one batch of all these rows (`loss`, `rewards/margins`, `logps/chosen`, ...), nothing learned.

    The library's values to check a formula against.
    """
    with TemporaryDirectory() as folder:
        settings = trainer_settings(folder, 0, learning_rate=0.0, per_device_train_batch_size=len(rows), max_steps=1,
                                    max_length=MAX_LENGTH, beta=beta)
        trainer = DPOTrainer(model=str(policy), ref_model=load_policy(reference), processing_class=load_tokenizer(policy),
                             train_dataset=_dataset(rows), args=DPOConfig(**settings))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0]


def _dataset(rows: list[dict]) -> Dataset:
    return Dataset.from_list([{"prompt": chat(r["prompt"]), "chosen": [{"role": "assistant", "content": r["chosen"]}],
                               "rejected": [{"role": "assistant", "content": r["rejected"]}]} for r in rows])
