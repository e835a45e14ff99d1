"""The whole series, notebook after notebook, through papermill on the quick profile: what each hands to the next, and the report."""

import json
import os

import nbformat
import pytest

from rlhf_helpers import series
from rlhf_helpers.bootstrap import ROOT
from rlhf_helpers.formats import read_candidates, read_instructions, read_preferences
from rlhf_helpers.profiles import get_profile
from rlhf_helpers.report import read_report
from rlhf_helpers.runs import ARTIFACTS, Run

NOTEBOOKS = ["00_start_here", "01_baseline_model", "02_instruction_data", "03_supervised_fine_tuning", "04_human_comparisons",
             "05_reward_model", "06_reinforcement_learning", "07_ppo", "08_direct_preference_optimisation", "09_final_assessment",
             "11_your_fifty_labels"]
TUNED = {"rloo", "grpo", "grpo_2", "ppo", "dpo", "dpo_2", "best_of_n"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run the series once; give the run, its printed text, and the repository's files before and after."""
    missing = [name for name in NOTEBOOKS if not (ROOT / "notebooks" / f"{name}.ipynb").exists()]
    assert not missing, f"these notebooks do not exist yet: {', '.join(missing)}"
    runs, before = tmp_path_factory.mktemp("runs"), dict(os.environ)
    os.environ["RLHF_RUNS"] = str(runs)
    sources = {path.name: path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")}
    try:
        code = series.main(["tutorial", "--profile", "quick", "--run", "chain", "--seed", "5"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert code == 0
    assert {path.name: path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")} == sources
    return Run(runs / "chain", get_profile("quick"), 5)


pytestmark = [pytest.mark.chain, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_all_notebooks_ran_in_order(chain):
    took = json.loads((chain.folder / "notebooks.json").read_text())
    assert list(took)[:10] == sorted(took)[:10] and set(NOTEBOOKS) <= set(took)
    assert all(figures["seconds"] > 0 and figures["peak_rss_mb"] > 50 for figures in took.values())
    times = [(chain.folder / "executed" / f"{name}.ipynb").stat().st_mtime for name in NOTEBOOKS]
    assert times == sorted(times)


def test_every_kernel_keeps_to_its_memory(chain):
    took = json.loads((chain.folder / "notebooks.json").read_text())
    assert max(figures["peak_rss_mb"] for figures in took.values()) < 1200


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_an_executed_notebook_is_clean_and_gave_its_figure(chain, name):
    cells = nbformat.read(chain.folder / "executed" / f"{name}.ipynb", as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code" and cell.source.strip())
    assert chain.kept("figures")[name]


def test_every_artifact_was_handed_over_whole(chain):
    for stage in ARTIFACTS:
        assert chain.has(stage), stage
    instructions, candidates, preferences = (read(chain.path(stage)) for read, stage in (
        (read_instructions, "instructions"), (read_candidates, "candidates"), (read_preferences, "preferences")))
    assert len(instructions) > 50 and len(candidates) > 20 and len(preferences) > 20
    prompts = {json.dumps(row["prompt"]) for row in map(conversational, candidates)}
    assert {json.dumps(row["prompt"]) for row in map(conversational, preferences)} <= prompts
    assert not list(chain.folder.glob(".*.part")) + list(chain.folder.glob(".*.old")) + list(chain.folder.glob("*.tmp"))


def conversational(row):
    from rlhf_helpers.formats import to_conversational
    return to_conversational(row)


def test_each_stage_started_from_the_one_before(chain):
    """The saved model configs and the notebooks' own words: nothing was made on the spot that a notebook had made."""
    for name in NOTEBOOKS[3:]:
        cells = nbformat.read(chain.folder / "executed" / f"{name}.ipynb", as_version=4).cells
        said = "".join(output.get("text", "") for cell in cells if cell.cell_type == "code" for output in cell.outputs)
        assert "making a quick one" not in said, name


def test_the_models_differ(chain):
    weights = {stage: (chain.path(stage) / "model.safetensors").read_bytes() for stage in ("base", "sft", *TUNED - {"best_of_n"})}
    assert len(set(weights.values())) == len(weights)


def test_the_report_has_its_shape(chain):
    report = read_report(chain.folder / "report.json")
    assert (report["profile"], report["seed"]) == ("quick", 5)
    assert set(NOTEBOOKS) <= set(report["notebooks"])
    assert all({"seconds", "peak_rss_mb"} <= figures.keys() for figures in report["notebooks"].values())
    for group in ("rubric", "instructions_followed", "unsafe_rate"):
        assert {"base", "sft"} | TUNED == set(report[group]), group
    assert {"base", "sft"} | TUNED - {"best_of_n"} <= set(report["bias_gap"])
    assert set(report["win_rate_vs_sft"]) == TUNED and set(report["kl_from_sft"]) == TUNED - {"best_of_n"}
    assert {"accuracy", "label_ceiling", "shuffled_control"} <= report["reward_model"].keys()
    assert {"human", "simulated", "agreement_alpha"} <= report["labels"].keys()
    assert report["labels"]["human"] == 0 < report["labels"]["simulated"], "no one labels in a test"
    for group in ("rubric", "instructions_followed", "bias_gap", "unsafe_rate", "win_rate_vs_sft", "kl_from_sft", "reward_model"):
        for name, figure in report[group].items():
            assert {"estimate", "low", "high", "n"} <= figure.keys(), f"{group} of {name}"
            assert figure["low"] - 1e-9 <= figure["estimate"] <= figure["high"] + 1e-9 and figure["n"] > 0, f"{group} of {name}"


def test_the_report_page_stands_alone(chain):
    page = (chain.folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "<script src=" not in page and "<link" not in page and str(chain.folder) not in page
