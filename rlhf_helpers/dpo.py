"""Direct preference optimisation (Rafailov et al., 2023, arXiv:2305.18290): from comparisons to a policy without a reward model."""

import math
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from .models import chat, load_tokenizer
from .profiles import Training
from .training import History, length_grouped, run_trainer, trainer_settings

MAX_LENGTH = 256


def train_dpo(start: str | Path, rows: list[dict], folder: str | Path, training: Training, beta: float, seed: int = 0) -> History:
    """DPO from the policy in `start`, which is also the reference, on preferences (`prompt`, `chosen`, `rejected`).

    Raises:
        RuntimeError: if the first loss is not ln 2, which means that policy and reference were not the same model.
    """
    answer = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    rows = length_grouped(rows, ("prompt", "chosen", "rejected"), training.batch_size, seed)
    data = Dataset.from_list([{"prompt": chat(r["prompt"]), "chosen": answer(r["chosen"]), "rejected": answer(r["rejected"])}
                              for r in rows])
    settings = trainer_settings(folder, seed, training, max_length=MAX_LENGTH, beta=beta)
    trainer = DPOTrainer(model=str(start), processing_class=load_tokenizer(start), train_dataset=data, args=DPOConfig(**settings))
    history = run_trainer(trainer, History("DPO"), folder)
    if abs(history.rows[0]["loss"] - math.log(2)) > 1e-3:
        raise RuntimeError(f"the first DPO loss is {history.rows[0]['loss']:.4f}, not ln 2 = 0.6931: "
                           "policy and reference differ; pass the folder of the SFT model")
    return history
