"""How the base model is made, on a tiny copy of the recipe; and the committed one, if it is there."""

import json
from itertools import product

import pytest
import torch
from tiny import SHAPE
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers import base_model
from rlhf_helpers.base_model import BASE_MODEL, Round, learning_rate
from rlhf_helpers.models import load_tokenizer
from rlhf_helpers.world.catalogue import catalogue
from rlhf_helpers.world.grammar import read_prompt
from rlhf_helpers.world.judge import judge
from rlhf_helpers.world.splits import evaluation_requests, is_reserved

CHAT = [{"role": "user", "content": "How can I sleep better?"}, {"role": "assistant", "content": "Go to bed early."}]


@pytest.fixture
def small(monkeypatch):
    """The same recipe with a little of everything."""
    for name, value in {"SHAPE": SHAPE, "VOCABULARY": 420, "SHARD": 40, "BATCH_TOKENS": 300}.items():
        monkeypatch.setattr(base_model, name, value)


# --- corpus -------------------------------------------------------------------------------------------------------------------

def test_the_corpus_is_the_same_each_time_and_another_in_each_shard(small):
    shards = {(seed, shard): base_model.corpus(seed, shard) for seed, shard in [(0, 0), (0, 1), (0, -1), (1, 0)]}
    assert shards[0, 0] == base_model.corpus(0, 0)
    for key, threads in shards.items():
        assert len(threads) == 40
        others = {thread.reply for other in shards if other != key for thread in shards[other]}
        assert len({thread.reply for thread in threads} & others) <= 2, "a short reply may come twice"


def test_threads_are_chats_with_a_reaction_in_nine_of_ten_and_questions_about_single_tips(monkeypatch):
    monkeypatch.setattr(base_model, "SHARD", 600)
    documents = base_model.corpus(0, 3)
    for document in documents:
        roles = [message["role"] for message in document.messages]
        assert roles == ["user", "assistant", "user"][:2 + bool(document.reaction)]
        assert all(message["content"].strip() for message in document.messages)
    threads = [document for document in documents if document.nats is not None]
    assert 0.54 < len(threads) / len(documents) < 0.66 and all(thread.nats > 0 for thread in threads)
    assert 0.85 < sum(thread.reaction is not None for thread in threads) / len(threads) < 0.95
    assert not [document for document in documents if document.nats is None and document.reaction]


@pytest.mark.parametrize("alone", [True, False])
def test_later_rounds_ask_for_numbers_of_tips_and_get_them(monkeypatch, alone):
    """In the short documents; the strangers of the threads count as badly as before."""
    monkeypatch.setattr(base_model, "SHARD", 600)
    documents = base_model.corpus(0, 3, Round(1, collections=0.0, numbers=0.5, alone=alone))
    counted = [document for document in documents if document.nats is None
               and (request := read_prompt(document.prompt)) and request.wish("count")]
    assert 0.15 < len(counted) / 600 < 0.25
    verdicts = [judge(document.prompt, document.reply) for document in counted]
    assert all(all(verdict.followed.values()) and not verdict.faults for verdict in verdicts)
    assert any(len(verdict.followed) == 2 for verdict in verdicts) is not alone
    assert {read_prompt(document.prompt).wish("count").value for document in counted} == {"one", "two", "three", "four"}


def test_a_round_says_how_many_documents_are_collections_of_tips(monkeypatch):
    monkeypatch.setattr(base_model, "SHARD", 600)
    documents = base_model.corpus(0, 3, Round(1, others=0.8, collections=0.75))
    found = [document for document in documents if document.nats is None and len(judge(document.prompt, document.reply).advice) >= 4]
    assert 0.53 < len(found) / 600 < 0.67
    assert 0.15 < sum(document.nats is not None for document in documents) / 600 < 0.25


def test_no_reserved_prompt_is_in_the_corpus(small):
    evaluation = {thread for thread in map(base_model.write_prompt, evaluation_requests(60))}
    rounds = Round(1), Round(1, numbers=1.0), Round(1, numbers=1.0, alone=False)
    for shard, round_ in product((-2, -1, 0, 1, base_model.HELD_OUT), rounds):
        for thread in base_model.corpus(0, shard, round_):
            assert thread.prompt not in evaluation
            request = read_prompt(thread.prompt)
            if thread.nats is not None or request and request.wish("count"):  # else a question about a single tip: no request for advice
                assert not is_reserved(request)


def test_batches_hold_every_document_whole_once_and_few_tokens_of_padding(small, tiny):
    tokenizer = load_tokenizer(tiny)
    batches = base_model.batches(tokenizer, 0, 5)
    rows = [row[row != tokenizer.pad_token_id].tolist() for batch in batches for row in batch]
    expected = [tokenizer(tokenizer.apply_chat_template(thread.messages, tokenize=False), add_special_tokens=False)["input_ids"]
                for thread in base_model.corpus(0, 5)]
    assert sorted(rows) == sorted(ids[:base_model.CONTEXT] for ids in expected)
    assert all(batch.numel() <= 300 or len(batch) == 1 for batch in batches)
    assert sum(batch.numel() for batch in batches) < 1.25 * sum(map(len, rows))


# --- tokenizer and template ---------------------------------------------------------------------------------------------------

@pytest.fixture(params=["tiny", "committed"])
def tokenizer(request):
    if request.param == "tiny":
        return load_tokenizer(request.getfixturevalue("tiny"))
    if not BASE_MODEL.exists():
        pytest.skip("data/base_model is not built yet")
    return load_tokenizer(BASE_MODEL)


def test_the_template_marks_each_turn_and_ends_it(tokenizer):
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == (
        "<|user|>How can I sleep better?<|eos|><|assistant|>Go to bed early.<|eos|>")
    assert tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True) == (
        "<|user|>How can I sleep better?<|eos|><|assistant|>")
    system = [{"role": "system", "content": "Be kind."}, *CHAT]
    assert tokenizer.apply_chat_template(system, tokenize=False).startswith("<|system|>Be kind.<|eos|><|user|>")
    two = tokenizer.apply_chat_template([CHAT, CHAT[:1]], tokenize=False)
    assert two == [tokenizer.apply_chat_template(CHAT, tokenize=False), "<|user|>How can I sleep better?<|eos|>"]


def test_the_template_knows_which_tokens_the_assistant_said(tokenizer):
    found = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mask in zip(found["input_ids"], found["assistant_masks"]) if mask]
    assert tokenizer.decode(said) == "Go to bed early.<|eos|>"


def test_pad_and_end_differ_and_every_mark_is_one_token(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert [tokenizer.convert_tokens_to_ids(mark) for mark in base_model.SPECIAL] == [0, 1, 2, 3, 4]
    for mark in base_model.SPECIAL:
        assert len(tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer("Hi")["input_ids"] == tokenizer("Hi", add_special_tokens=False)["input_ids"], "TRL adds marks by itself"


@pytest.mark.parametrize("text", ["Schlaf gut, José! 😴", "  two  spaces\nand\ttabs ", "", "1. Go.\n2. Rest."])
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False) == text


# --- training -----------------------------------------------------------------------------------------------------------------

def test_the_learning_rate_rises_and_falls_in_each_round_to_its_end():
    assert learning_rate(680, (Round(800, end=0.2),), 0.01) == pytest.approx(0.01 * (1 - 0.8 * 680 / 800))
    rounds = (Round(680), Round(320, rate=0.3))
    rates = [learning_rate(step, rounds, 0.01) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01 / 100)
    top = rates.index(max(rates))
    assert 80 < top < 100 and rates[top] < 0.01
    assert all(a < b for a, b in zip(rates[:top], rates[1:])) and all(a > b for a, b in zip(rates[top:679], rates[top + 1:]))
    assert rates[340] == pytest.approx(0.005) and rates[679] < 2e-5
    assert rates[680] == pytest.approx(0.003) and rates[840] == pytest.approx(0.0015) and 0 < rates[999] < 2e-5
    with pytest.raises(ValueError, match="end 5 steps before"):
        base_model.where(1005, rounds)


@pytest.mark.parametrize("there", [True, False])
def test_the_finished_model_takes_the_place_of_the_old_one_if_there_is_one(small, tiny, tmp_path, monkeypatch, there):
    """Only training and measuring, which take long, are stood in for."""
    place, work = tmp_path / "base_model", tmp_path / "work"
    if there:
        place.mkdir()
        (place / "old.txt").write_text("old")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), load_tokenizer(tiny)
    monkeypatch.setattr(base_model, "BASE_MODEL", place)
    monkeypatch.setattr(base_model, "train", lambda *plan: (model, tokenizer, {"steps": 1, "tokens": 1, "minutes": 0.1}))
    monkeypatch.setattr(base_model, "measure", lambda folder, seed: json.loads((BASE_MODEL / "figures.json").read_text()))
    monkeypatch.setattr("sys.argv", ["base_model", "--work", str(work)])
    base_model.main()
    assert {"README.md", "figures.json", "model.safetensors"} <= {path.name for path in place.iterdir()}
    assert not (place / "old.txt").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["base_model", "work"]


def test_a_checkpoint_of_another_plan_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(base_model.shutil, "which", lambda name: None)  # no compiler: nothing to wait for
    base_model.train(tmp_path, (Round(1),), 0, 0.01)
    with pytest.raises(ValueError, match="delete it, or give another folder"):
        base_model.train(tmp_path, (Round(2),), 0, 0.01)


def test_the_loss_does_not_see_padding(tiny):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), load_tokenizer(tiny)
    ids = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)["input_ids"]
    padded = torch.cat([ids, ids.new_full((1, 7), tokenizer.pad_token_id)], 1)
    assert base_model.loss_of(model, padded).item() == pytest.approx(base_model.loss_of(model, ids).item(), abs=1e-5)
    log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert base_model.loss_of(model, ids).item() == pytest.approx(-log_probs.mean().item(), abs=1e-5)


def test_a_stopped_training_ends_with_the_same_weights(small, tmp_path, monkeypatch):
    """Stopped in its second round some steps after its checkpoint, as by Ctrl-C, and started again: as if nothing had been."""
    monkeypatch.setattr(base_model.shutil, "which", lambda name: None)  # no compiler: it would compile the stand-in below again and again
    monkeypatch.setattr(base_model, "SHAPE", SHAPE | {"num_hidden_layers": 1})
    last_steps, steps = 20, 120  # the checkpoint is in the middle of a shard, the end in a later one
    rounds = (Round(steps - 60), Round(60, rate=0.3, numbers=0.5))
    whole, *_ = base_model.train(tmp_path / "whole", rounds, 0, 1e-2)
    done, loss_of = [], base_model.loss_of

    def stopped(model, ids):
        done.append(ids.shape)
        if len(done) == 100 + last_steps // 2:
            raise KeyboardInterrupt
        return loss_of(model, ids)

    monkeypatch.setattr(base_model, "loss_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        base_model.train(tmp_path / "stopped", rounds, 0, 1e-2)
    again, _, training = base_model.train(tmp_path / "stopped", rounds, 0, 1e-2)
    assert len(done) == 100 + last_steps // 2 + last_steps, "it goes on at the checkpoint, not at the start"
    assert training["steps"] == steps
    for (name, one), (_, other) in zip(whole.state_dict().items(), again.state_dict().items()):
        assert torch.equal(one, other), name
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(20, steps + 1, 20))
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    model, *_ = base_model.train(tmp_path / "stopped", rounds, 0, 1e-2)  # finished: nothing more to do
    assert len(done) == 100 + last_steps // 2 + last_steps


def test_the_optimisers_share_out_all_weights_once(small, tiny):
    model = base_model.new_model(load_tokenizer(tiny), 0)
    matrices, others = ([p for group in o.param_groups for p in group["params"]] for o in base_model.optimisers(model, 1e-2))
    assert {id(p) for p in matrices} | {id(p) for p in others} == {id(p) for p in model.parameters()}
    assert len(matrices) + len(others) == len(list(model.parameters()))
    assert all(p.ndim == 2 for p in matrices) and model.get_input_embeddings().weight in set(others)


def test_the_bigram_model_is_a_distribution(small, tiny):
    """Its probabilities of all next tokens sum to one, and it knows the corpus better than an even guess."""
    tokenizer = load_tokenizer(tiny)
    threads = base_model.corpus(0, base_model.HELD_OUT)[:10]
    log_probs = base_model.bigram_log_probs(tokenizer, 0, threads, shards=2)
    rows = base_model._token_rows(tokenizer, threads)
    assert len(log_probs) == sum(len(ids) - 1 for ids in rows) and max(log_probs) < 0
    assert -sum(log_probs) / len(log_probs) < torch.tensor(float(len(tokenizer))).log()


# --- the committed model ------------------------------------------------------------------------------------------------------

committed = pytest.mark.skipif(not BASE_MODEL.exists(), reason="data/base_model is not built yet")


@committed
def test_the_committed_model_is_small_and_safetensors_only():
    files = {path.name: path.stat().st_size for path in BASE_MODEL.iterdir()}
    assert sum(files.values()) <= 12e6
    assert "model.safetensors" in files and "README.md" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".pth", ".py"))]


@committed
def test_the_committed_model_loads_with_plain_transformers_and_answers():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE_MODEL), AutoTokenizer.from_pretrained(BASE_MODEL)
    assert sum(p.numel() for p in model.parameters()) <= 5_000_000
    assert model.config.model_type == "llama" and model.config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size and model.dtype == torch.float32
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "How can I sleep better at night?"}], add_generation_prompt=True,
                                        return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, do_sample=False, max_new_tokens=112)[0, ids["input_ids"].shape[1]:]
    assert answer[-1] == tokenizer.eos_token_id
    assert len(tokenizer.decode(answer, skip_special_tokens=True).split()) >= 4


@committed
def test_the_committed_card_gives_the_measured_figures():
    figures = json.loads((BASE_MODEL / "figures.json").read_text())
    card = (BASE_MODEL / "README.md").read_text()
    assert f"{figures['weights']:,} weights" in card and "{" not in card
    assert figures["samples"] >= 400
    assert figures["unknown_sentences"]["model"] <= 0.03
    assert figures["nats_per_token"]["model"] < figures["nats_per_token"]["bigram"]


@committed
@pytest.mark.parametrize("name", [*base_model.FAULTS, "on-topic tips"])
def test_the_committed_model_shows_a_fault_as_often_as_its_corpus(name):
    rate = json.loads((BASE_MODEL / "figures.json").read_text())["rates"][name]
    assert abs(rate["corpus"]["estimate"] - rate["model"]["estimate"]) <= 0.05


@committed
def test_the_committed_card_says_how_often_a_tip_comes_twice():
    """Beside what drawing blindly from the tips of a topic gives: of two, one in twelve is the other again."""
    assert {len(topic.tips) for topic in catalogue().topics.values()} == {base_model.TIPS}
    said_twice, card = json.loads((BASE_MODEL / "figures.json").read_text())["said_twice"], (BASE_MODEL / "README.md").read_text()
    blind = {str(tips): sum(len(set(drawn)) < tips for drawn in product(range(12), repeat=tips)) / 12 ** tips for tips in (2, 3, 4)}
    assert {tips: row["blind"] for tips, row in said_twice.items()} == pytest.approx(blind)
    for tips, row in said_twice.items():
        assert row["corpus"]["estimate"] < row["blind"]
        assert f"| {tips} | {row['corpus']['estimate']:.2f} | {row['model']['estimate']:.2f} |" in card
