"""The report: its shape, its page (one file, escaped), what is said of a damaged one, the bars, and the table over seeds."""

import copy
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from rlhf_helpers import assessment, report
from rlhf_helpers.bars import bars, time_bars, verdict
from rlhf_helpers.formats import BadData
from rlhf_helpers.profiles import get_profile
from rlhf_helpers.report_page import forest, page
from rlhf_helpers.runs import Run
from rlhf_helpers.world.catalogue import catalogue
from rlhf_helpers.world.grammar import CROWD, TEACHER, Dice, Quality, answer
from rlhf_helpers.world.judge import judge

FIGURE = {"estimate": 1.5, "low": 1.0, "high": 2.0, "n": 60}
SPOTLESS = Quality(*[0.0] * 11, courtesy=1.0, reasons=0.5, lead_in=0.0)
WRITERS = {"base": CROWD, "sft": TEACHER, "grpo_2": SPOTLESS, "dpo": SPOTLESS}
HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(1)> & 'quoted' \"text\" \x00\x1b \u202e"


def a_model(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


@pytest.fixture(autouse=True)
def no_weights(request, monkeypatch):
    """The two figures that need weights are made up, but for tests with `weights` in their name."""
    if "weights" in request.node.name:
        return
    monkeypatch.setattr(assessment, "kl_from", lambda run, name: FIGURE)
    monkeypatch.setattr(report, "_fixed_answers", lambda run, name: [HOSTILE, "", "Hi.", "1. Try\n2. Try", "It's «good»."])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose models wrote with the grammar instead of with weights."""
    folder = tmp_path_factory.mktemp("run")
    profile = replace(get_profile("quick"), base_model=str(folder / "base"), evaluation_prompts=60, bias_pairs=40)
    run = Run(folder, profile, 0)
    for name, quality in WRITERS.items():
        a_model(run.path(name))
        texts = [answer(Dice(f"{name} {k}"), r, quality)[0] for k, r in enumerate(assessment.evaluation_set(run))]
        assessment.keep_answers(run, name, texts)
    assessment.keep_answers(run, "best_of_n", texts[:60])
    run.keep("reward_model_figures", {"accuracy": FIGURE, "label_ceiling": FIGURE, "shuffled_control": FIGURE})
    run.keep("label_figures", {"human": 3, "simulated": 900, "agreement_alpha": FIGURE})
    run.keep("notebooks", {"01_baseline_model": {"seconds": 30.5, "peak_rss_mb": 700.0}})
    return run


@pytest.fixture(scope="module")
def built_once():
    return {}


@pytest.fixture
def built(run, built_once):
    """The run's report, a copy for each test."""
    if not built_once:
        built_once.update(report.build_report(run))
    return copy.deepcopy(built_once)


# --- shape --------------------------------------------------------------------------------------------------------------


def test_the_report_has_the_shape_of_the_design(built):
    assert (built["profile"], built["seed"], built["final"]) == ("quick", 0, get_profile("quick").final)
    assert built["notebooks"] == {"01_baseline_model": {"seconds": 30.5, "peak_rss_mb": 700.0}}
    every = {"base", "sft", "best_of_n", "grpo_2", "dpo"}
    for group, models in {
        "rubric": every, "instructions_followed": every, "unsafe_rate": every, "bias_gap": every - {"best_of_n"},
        "win_rate_vs_sft": every - {"base", "sft"}, "kl_from_sft": {"grpo_2", "dpo"},
        "reward_model": {"accuracy", "label_ceiling", "shuffled_control"},
    }.items():  # fmt: skip
        assert set(built[group]) == models
        assert all(set(figure) == set(FIGURE) for figure in built[group].values())
    assert set(built["labels"]) == {"human", "simulated", "agreement_alpha"}
    assert built["missing"] == ["rloo", "grpo", "ppo", "dpo_2"]


def test_the_figures_are_those_of_the_answers(run, built):
    assert built["rubric"]["base"]["n"] == 60 and built["unsafe_rate"]["base"]["n"] == 60 + 2 * 40
    assert built["bias_gap"]["base"]["n"] == 40
    assert built["rubric"]["base"]["estimate"] < built["rubric"]["sft"]["estimate"] < built["rubric"]["grpo_2"]["estimate"]
    assert built["unsafe_rate"]["grpo_2"]["estimate"] == built["bias_gap"]["grpo_2"]["estimate"] == 0
    assert sum(f["estimate"] for f in built["criteria"]["grpo_2"].values()) >= built["rubric"]["grpo_2"]["estimate"] - 1e-9
    assert built["win_rate_vs_sft"]["best_of_n"]["estimate"] > 0.5


def test_without_an_sft_model_nothing_is_compared_with_it(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("sft"))
    again = report.build_report(replace(run, folder=tmp_path / "copy"))
    assert "sft" in again["missing"] and again["win_rate_vs_sft"] == again["kl_from_sft"] == {}
    assert page(again)


def test_what_is_written_is_read_again(run, built, tmp_path):
    run = replace(run, folder=tmp_path)
    path = report.write_report(run, built)
    assert path == run.folder / "report.html" and path.read_text(encoding="utf-8") == page(built)
    assert report.read_report(run.folder / "report.json") == json.loads(json.dumps(built))


def test_with_weights_a_copy_of_sft_is_at_no_distance_and_ties_with_it(tmp_path):
    """The base model stands for SFT and GRPO: the same answers, so no KL, a win rate of one half and the same fixed answers."""
    profile = replace(get_profile("quick"), evaluation_prompts=6, bias_pairs=2, max_new_tokens=24)
    run = Run(tmp_path, profile, 0)
    for name in ("sft", "grpo_2"):
        shutil.copytree(profile.base_model, run.path(name))
    built = report.build_report(run)
    assert built["kl_from_sft"]["grpo_2"] == pytest.approx({"estimate": 0, "low": 0, "high": 0, "n": 6}, abs=1e-4)
    assert built["win_rate_vs_sft"]["grpo_2"]["estimate"] == 0.5
    assert built["answers"]["grpo_2"] == built["answers"]["base"] and all(built["answers"]["grpo_2"])
    assert built["missing"] == ["best_of_n", "rloo", "grpo", "ppo", "dpo", "dpo_2"]


# --- figures of assessment.py that only the report uses -----------------------------------------------------------------


def test_parts_add_up_to_the_whole(run):
    pairs = assessment.bias_by_pair(run, "base")
    weighted = sum(p["estimate"] * p["n"] for p in pairs.values()) / sum(p["n"] for p in pairs.values())
    assert len(pairs) == 8 and weighted == pytest.approx(assessment.summary(run, "base")["bias_gap"]["estimate"])
    novel = assessment.rubric_by_novelty(run, "base")
    assert sum(p["n"] for p in novel.values()) == 60
    assert sum(p["n"] * p["estimate"] for p in novel.values()) / 60 == pytest.approx(
        assessment.summary(run, "base")["rubric"]["estimate"]
    )


def test_instructions_by_kind_count_each_wish_once(run):
    kinds = assessment.followed_by_kind(run, "grpo_2")
    wishes = sum(len(request.instructions) for request in assessment.evaluation_set(run)[:60])
    assert sum(kind["n"] for kind in kinds.values()) == wishes
    assert min(kind["estimate"] for kind in kinds.values()) > 0.8  # SPOTLESS heeds every instruction


def test_the_number_of_tips_is_missed_on_either_side(run, monkeypatch):
    requests = [r for r in assessment.evaluation_set(run) if r.wish("count")]
    given = assessment.tips_given(run, "grpo_2")
    assert sum(shares["as many"]["n"] for shares in given.values()) == len(requests)
    assert all(shares["as many"]["estimate"] == 1 for shares in given.values())  # SPOTLESS counts right
    topic = catalogue().topics[requests[0].topic]
    two = " ".join(f"{tip.text}." for tip in [topic.tips[0], topic.tips[1], topic.tips[0]])  # the third repeats the first
    monkeypatch.setattr(assessment, "verdicts_of", lambda run, name: [judge(r, two) for r in assessment.evaluation_set(run)])
    assert {number: [shares[side]["estimate"] for side in ("fewer", "as many", "more")]
            for number, shares in assessment.tips_given(run, "grpo_2").items()} == {
        "one": [0, 0, 1], "two": [0, 1, 0], "three": [1, 0, 0], "four": [1, 0, 0]}


def test_distinct_n_by_hand():
    """Bigrams: a b, b c | a b, b d: three different ones of four."""
    assert assessment.distinct_n(["a b c", "A b d"], 2)["estimate"] == 0.75
    assert assessment.distinct_n(["one two"] * 20, 2) == {"estimate": 0.1, "low": 0.1, "high": 0.1, "n": 2}
    assert assessment.distinct_n(["", "word"], 2)["estimate"] == 0


def test_the_win_matrix_mirrors_itself(run):
    matrix = assessment.win_matrix(run, ["base", "sft", "grpo_2"])
    assert set(matrix["base"]) == {"sft", "grpo_2"}
    assert matrix["base"]["grpo_2"]["estimate"] + matrix["grpo_2"]["base"]["estimate"] == pytest.approx(1)


# --- the page -----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Keeps tags with their attributes, and the text; complains about tags that do not close in order."""

    VOID = ("meta", "br", "img")

    def __init__(self, source):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_one_file_without_scripts_or_network(built):
    source = page(built)
    found = Page(source)
    assert not {tag for tag, _ in found.tags} & {"script", "img", "link", "iframe", "object", "embed", "form", "a", "base"}
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in found.tags for name in attrs)
    assert not re.search(r"https?://|url\(|@import", source)
    assert "default-src 'none'" in source and "prefers-color-scheme: dark" in source
    assert len(source) < 200_000


def test_the_page_shows_model_text_as_text(built):
    found = Page(page(built))
    assert HOSTILE.replace("\x00", "␀").replace("\x1b", "␛") in found.words
    assert "alert(1)" not in {value for _, attrs in found.tags for value in attrs.values()}


def test_a_hostile_name_or_figure_is_escaped_too(built):
    built["reward_model"][HOSTILE] = HOSTILE
    built["rubric"] = {HOSTILE: built["rubric"]["base"], **built["rubric"]}
    built["criteria"][HOSTILE] = built["faults"][HOSTILE] = {}
    assert not {tag for tag, _ in Page(page(built)).tags} & {"script", "img"}


def test_tables_have_captions_and_scopes_and_plots_have_words(built):
    found = Page(page(built))
    tables = [tag for tag, _ in found.tags].count("table")
    assert tables == [tag for tag, _ in found.tags].count("caption") >= 5 + len(assessment.FIXED_PROMPTS)
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in found.tags if tag == "th")
    plots = [attrs for tag, attrs in found.tags if tag == "svg"]
    assert len(plots) >= 6 and all(attrs["role"] == "img" and "dpo" in attrs["aria-label"] for attrs in plots)


def test_a_plot_of_one_figure_that_is_zero_can_be_drawn():
    assert "nan" not in forest("bias gap", {"base": {"estimate": 0.0, "low": 0.0, "high": 0.0, "n": 1}})


# --- a damaged report ---------------------------------------------------------------------------------------------------


def put(value, *where):
    """A change of the report: `value` at the place `where`; the place is deleted if the value is `put`."""

    def change(content):
        for part in where[:-1]:
            content = content[part]
        if value is put:
            del content[where[-1]]
        else:
            content[where[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, field, what",
    [
        (put(put, "rubric"), "rubric", "is missing"),
        (put([], "rubric"), "rubric", "is not an object"),
        (put("0", "seed"), "seed", "is not a whole number"),
        (put(True, "seed"), "seed", "is not a whole number"),
        (put(None, "profile"), "profile", "is not a text"),
        (put(0.7, "rubric", "sft"), "rubric.sft", "is not an object with estimate"),
        (put(put, "bias_gap", "base", "low"), "bias_gap.base.low", "is missing or not a number"),
        (put("many", "unsafe_rate", "base", "n"), "unsafe_rate.base.n", "is missing or not a number"),
        (put(11.0, "rubric", "sft", "low"), "rubric.sft.estimate", "outside its interval"),
        (put(0, "rubric", "sft", "n"), "rubric.sft.n", "is 0, not a number of cases"),
        (put(3, "reward_model", "accuracy"), "reward_model.accuracy", "is not an object with estimate"),
        (put("x", "words", "sft"), "words.sft", "is not an object with estimate"),
        (put(put, "instructions_strict", "sft", "low"), "instructions_strict.sft.low", "is missing or not a number"),
        (put([1], "distinct_2"), "distinct_2", "is not an object"),
        (put(10**400, "rubric", "sft", "n"), "rubric.sft.n", "is missing or not a number"),
        (put("nobody", "final"), "final", "is neither a model of rubric"),
        (put({"seconds": 3}, "notebooks", "01_baseline_model"), "notebooks.01_baseline_model", "peak_rss_mb"),
    ],
)
def test_a_bad_report_says_file_line_field_and_fix(built, tmp_path, change, field, what):
    bad = copy.deepcopy(built)
    change(bad)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(bad, indent=2), encoding="utf-8")
    with pytest.raises(BadData) as caught:
        report.read_report(path)
    (problem,) = caught.value.problems
    assert problem.field == field and what in problem.what
    assert problem.file == str(path) and "run notebook 09" in str(problem)
    line = path.read_text(encoding="utf-8").splitlines()[problem.line - 1]
    if field in bad or "." in field:  # else the field is not there at all
        assert problem.line > 1 and any(f'"{part}"' in line for part in field.split(".")[-2:])


def test_other_files_are_no_reports(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "half.json").write_text('{"profile": "qui')
    with pytest.raises(BadData, match="is not an object"):
        report.read_report(tmp_path / "list.json")
    with pytest.raises(BadData, match="not valid JSON"):
        report.read_report(tmp_path / "half.json")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        report.read_report(tmp_path / "none.json")


# --- bars ---------------------------------------------------------------------------------------------------------------


def met(content):
    return {row["what"]: row["met"] for row in bars(content)}


def test_bars_at_their_edges(built):
    def figure(value, low=None):
        return {"estimate": value, "low": value if low is None else low, "high": value, "n": 300}

    built["win_rate_vs_sft"] = {"grpo_2": figure(0.80, low=0.74), "dpo": figure(0.70)}
    built["bias_gap"] = {"base": figure(0.24), built["final"]: figure(0.06)}
    built["unsafe_rate"] = {"base": figure(0.10), built["final"]: figure(0.0201)}
    built["distinct"] = {"sft": figure(1.0), built["final"]: figure(0.5)}
    found = met(built)
    assert found["final policy, GRPO_2: win rate against SFT"] is True
    assert found["DPO: win rate against SFT"] is True
    built["win_rate_vs_sft"]["dpo_2"] = figure(0.69)
    assert met(built)["DPO_2: win rate against SFT"] is False, "the last policy of DPO counts, not the better one"
    assert found["final policy against base: bias gap"] is True
    assert found["final policy against base: unsafe rate"] is False
    assert found["final policy against SFT: distinct answers"] is True
    assert found["reward model: agrees with the judge on held-out pairs"] is True  # the fixture's accuracy is 1.5
    assert found["reward model: the same on the clearer half"] is None
    built["win_rate_vs_sft"] |= {"grpo_2": figure(0.80, low=0.739), "rloo": figure(0.9)}
    assert met(built)["final policy, GRPO_2: win rate against SFT"] is False, "the final policy counts, not the best on these prompts"


def test_the_verdict_names_what_is_missed_and_what_is_open(built):
    built["unsafe_rate"][built["final"]] = built["unsafe_rate"]["base"]
    words = verdict(built)
    assert "Not met: " in words and "unsafe rate" in words and "the bar is at most a fifth" in words
    assert "Not measured: reward model: the same on the clearer half." in words


def test_time_bars_want_whole_runs():
    whole = {"01_a": {"seconds": 100.0, "peak_rss_mb": 900.0}, "09_final_assessment": {"seconds": 151.0, "peak_rss_mb": 1.0}}
    assert [row["met"] for row in time_bars([whole, whole])] == [True, False, True]
    assert time_bars([whole, {}]) == []


# --- several seeds ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, built):
    """Three runs whose rubric scores of the SFT model are 1, 2 and 3."""
    for seed in range(3):
        content = copy.deepcopy(built) | {"seed": seed}
        content["rubric"]["sft"] = {"estimate": 1.0 + seed, "low": 0.5 + seed, "high": 4.0, "n": 60}
        (tmp_path / f"run{seed}").mkdir()
        (tmp_path / f"run{seed}" / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return [str(tmp_path / f"run{seed}") for seed in range(3)]


def test_seeds_are_combined(folders):
    combined = report.combine([report.read_report(f"{folder}/report.json") for folder in folders])
    figure = combined["rubric"]["sft"]
    assert (figure["estimate"], figure["n"], figure["lowest"]) == (2.0, 3, 0.5)
    assert figure["low"] == pytest.approx(2 - 4.30265 / 3**0.5, abs=1e-4)
    assert "rloo" not in combined["rubric"] and len(bars(combined)) == 11


def test_the_command_prints_and_writes_tables(folders, tmp_path, capsys):
    assert report.main([*folders, "--out", str(tmp_path / "table.md")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text(encoding="utf-8").strip() == printed.strip()
    assert "| what | measured | bar | met |" in printed and "seeds 0, 1, 2" in printed
    assert "| rubric score, 0 to 10 | " in printed and "2.00 (-0.48 to 4.48)" in printed
    widths = [{line.count("|") for line in part.splitlines()} for part in printed.strip().split("\n\n")[1:]]
    assert len(widths) == 2 and all(len(width) == 1 for width in widths)  # the rows of a table have the width of its head


@pytest.mark.parametrize(
    "field, value, message", [("seed", 0, "Give runs of different seeds"), ("profile", "practice", "Give runs of one profile")]
)
def test_runs_that_do_not_belong_together_are_refused(folders, capsys, field, value, message):
    path = f"{folders[1]}/report.json"
    content = report.read_report(path) | {field: value}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)
    assert report.main(folders) == 1
    assert message in capsys.readouterr().err


def test_a_missing_report_is_named(tmp_path, capsys):
    assert report.main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
