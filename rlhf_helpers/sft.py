"""Supervised fine-tuning: the model learns to answer as the demonstrations do. The loss counts the completion's tokens only."""

from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from .models import chat, load_tokenizer
from .profiles import Training
from .training import History, length_grouped, run_trainer, trainer_settings

MAX_LENGTH = 256


def train_sft(base: str | Path, rows: list[dict], folder: str | Path, training: Training, seed: int = 0,
              title: str = "Supervised fine-tuning") -> History:
    """Fine-tune the model in `base` on instructions (`prompt`, `completion`) with TRL's SFTTrainer and save it into `folder`."""
    rows = length_grouped(rows, ("prompt", "completion"), training.batch_size, seed)
    data = Dataset.from_list([{"prompt": chat(row["prompt"]), "completion": [{"role": "assistant", "content": row["completion"]}]}
                              for row in rows])
    settings = trainer_settings(folder, seed, training, max_length=MAX_LENGTH)
    trainer = SFTTrainer(model=str(base), processing_class=load_tokenizer(base), train_dataset=data, args=SFTConfig(**settings))
    return run_trainer(trainer, History(title), folder)
