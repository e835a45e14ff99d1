"""What TRL 1.12's PPOTrainer makes of one fixed batch: run with TRL 1.12 installed, writes `trl112_numbers.json` beside this file.

    python tests/trl112_numbers.py

TRL samples its answers itself; here they are given to it (`batch_generation` is replaced). Every answer fills the whole width, some
with an end token as their last: where an answer ends earlier, TRL puts the score one token after its end (huggingface/trl#3750), so
that its numbers would not be those of the formulas. Everything that the learner does with the batch is TRL's own.
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

FILE = Path(__file__).with_suffix(".json")
PAD, END, WIDTH, LEAD, VOCABULARY = 0, 1, 5, 4, 24
SETTINGS = dict(kl_coef=0.1, cliprange=0.1, cliprange_value=0.05, vf_coef=0.3, gamma=0.97, lam=0.9, num_ppo_epochs=4, num_mini_batches=1,
                temperature=1.0)
RATE = 0.004
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14], [5, 9, 11], [6, 10, 12, 15]]
COMPLETIONS = [[3, 4, 5, 6, 1], [7, 7, 8, 2, 9], [20, 21, 22, 23, 1], [2, 3, 2, 3, 2], [15, 16, 17, 18, 1], [19, 4, 4, 9, 10]]


def model(kind, phase: float, **more):
    """A Llama whose weights are a formula, the same with every version of every library."""
    shape = LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=PAD, eos_token_id=END, bos_token_id=END,
                        tie_word_embeddings=False, **more)
    made = kind(shape)
    for number, weight in enumerate(made.parameters()):
        if weight.dim() > 1:
            values = torch.arange(weight.numel(), dtype=torch.float64)
            weight.data = (0.3 * torch.sin(values * (1 + 0.37 * number) + phase)).view_as(weight).float()
    return made.eval()


def models():
    """Policy, reference (another model, so that the KL is not 0), reward and value model."""
    return (model(LlamaForCausalLM, 0.0), model(LlamaForCausalLM, 0.1), model(LlamaForSequenceClassification, 0.2, num_labels=1),
            model(LlamaForSequenceClassification, 0.3, num_labels=1))


def ragged():
    """Values and a mask with rows of different lengths."""
    values = torch.tensor([[math.sin(3 * row + 2 * t) + row / 4 for t in range(6)] for row in range(5)])
    return values, torch.tensor([[float(t < length) for t in range(6)] for length in (6, 1, 4, 3, 2)])


def main():
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import __version__
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
    policy, reference, reward, value = models()
    tokenizer = _tokenizer(PreTrainedTokenizerFast)
    padded = torch.tensor([[PAD] * (LEAD - len(p)) + p for p in PROMPTS])
    together = torch.cat([padded, torch.tensor(COMPLETIONS)], 1)
    scores = []

    def given(policy, queries, *rest):
        assert queries.tolist() == padded.tolist()
        return together, ppo_trainer.forward(policy, together, PAD).logits[:, LEAD - 1:-1]

    def kept(model, *rest):
        found = original(model, *rest)
        if model is reward:
            scores.extend(found[1].tolist())
        return found

    original, ppo_trainer.get_reward, ppo_trainer.batch_generation = ppo_trainer.get_reward, kept, given
    with TemporaryDirectory() as folder:
        config = PPOConfig(output_dir=folder, bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none", seed=0,
                           per_device_train_batch_size=len(PROMPTS), gradient_accumulation_steps=1, total_episodes=len(PROMPTS),
                           response_length=WIDTH, local_rollout_forward_batch_size=len(PROMPTS), num_sample_generations=0,
                           learning_rate=RATE, lr_scheduler_type="constant", adam_epsilon=1e-5, weight_decay=0.0, stop_token=None,
                           missing_eos_penalty=None, whiten_rewards=False, save_strategy="no", logging_steps=1, **SETTINGS)
        data = Dataset.from_list([{"input_ids": row, "attention_mask": [int(token != PAD) for token in row]} for row in padded.tolist()])
        trainer = PPOTrainer(args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
                             value_model=value, train_dataset=data, eval_dataset=data)
        trainer.dataloader = [{"input_ids": padded}]
        trainer.train()
    logged = next(row for row in trainer.state.log_history if "loss/policy_avg" in row)
    wanted = ("objective/kl", "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
              "val/clipfrac_avg", "val/ratio")
    values, mask = ragged()
    FILE.write_text(json.dumps({
        "trl": __version__, "scores": scores, "logged": {name: logged[name] for name in wanted},
        "policy_head_after": policy.lm_head.weight[:, 0].tolist(), "value_head_after": value.score.weight[0].tolist(),
        "whitened": ppo_trainer.masked_whiten(values, mask.bool()).mul(mask).tolist(),
    }, indent=1) + "\n")


def _tokenizer(kind):
    from tokenizers import Tokenizer, models
    words = {"<pad>": PAD, "<end>": END} | {f"w{k}": k for k in range(2, VOCABULARY)}
    return kind(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), pad_token="<pad>", eos_token="<end>",
                padding_side="left")


if __name__ == "__main__":
    main()
