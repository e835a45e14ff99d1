"""Agreement: published worked examples, hand calculations, and what happens when there is too little to say."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rlhf_helpers.labelling import agreement
from rlhf_helpers.labelling.store import Label


def label(pair, annotator, verdict, left="a", ms=1000, lengths=None):
    """Verdict "a" or "b" prefers that response; else a tie or a skip."""
    order = (left, "b" if left == "a" else "a")
    choice = "prefer" if verdict in ("a", "b") else verdict
    return Label(str(pair), annotator, "person", choice, verdict if choice == "prefer" else None, order,
                 lengths or {"a": 10, "b": 20}, ms, "2026-01-01")


def labels_of(**verdicts):
    """One string an annotator, one letter a pair: a, b, g (both good), x (both bad), s (skip), - (nothing)."""
    names = {"g": "tie_good", "x": "tie_bad", "s": "skip"}
    return [label(pair, annotator, names.get(letter, letter))
            for annotator, letters in verdicts.items() for pair, letter in enumerate(letters) if letter != "-"]


def test_alpha_of_krippendorffs_examples():
    """Computing Krippendorff's Alpha-Reliability (2011): four observers with gaps, 0.743; two observers, 0.692."""
    nan = np.nan
    example_c = [[1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
                 [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan]]
    result = agreement.alpha_of(pd.DataFrame(example_c))
    assert result["estimate"] == pytest.approx(0.743, abs=5e-4) and result["n"] == 11
    assert 0.4 < result["low"] < result["estimate"] < result["high"] <= 1
    example_b = [[ord(letter) for letter in line] for line in ("aabbdcccedda", "babbbccceddd")]
    assert agreement.alpha_of(pd.DataFrame(example_b, dtype=float))["estimate"] == pytest.approx(0.692, abs=5e-4)


def test_alpha_of_labels_is_the_binary_example():
    """By hand, with the counts of the paper's binary example: 14 of one kind, 6 of the other, 4 of 10 units apart give
    1 - (20 - 1) * 4 / (14 * 6) = 0.0952. Sides must not matter."""
    meg, owen = "abaaaaaaaa", "bbbaababaa"
    plain = labels_of(meg=meg, owen=owen)
    swapped = [label(pair, name, verdict, left="b") for name, line in (("meg", meg), ("owen", owen))
               for pair, verdict in enumerate(line)]
    assert agreement.krippendorff_alpha(plain)["estimate"] == pytest.approx(1 - 19 * 4 / (14 * 6))
    assert agreement.krippendorff_alpha(swapped) == agreement.krippendorff_alpha(plain)


def test_kappa_by_hand():
    """20 both first, 15 both second, 5 and 10 apart: observed 0.7, expected 0.5, kappa 0.4."""
    given = labels_of(one="a" * 25 + "b" * 25, other="a" * 20 + "b" * 5 + "a" * 10 + "b" * 15)
    kappa = agreement.cohen_kappa(given, "one", "other")
    assert kappa["estimate"] == pytest.approx(0.4) and kappa["n"] == 50
    assert 0.1 < kappa["low"] < 0.4 < kappa["high"] < 0.7


def test_percent_agreement():
    """Three agree on pair 0; two of three on pair 1 (a third of the pairs of people); pair 2 has one voice."""
    percent = agreement.percent_agreement(labels_of(one="aa-", two="aag", three="ab-", four="sss"))
    assert percent["estimate"] == pytest.approx((1 + 1 / 3) / 2) and percent["n"] == 2


def test_wilson_by_the_formula():
    """8 of 10 pairs agreed on."""
    wilson = agreement.percent_agreement(labels_of(one="aaaaaaaaaa", two="aaaaaaaabb"))
    z, p, n = 1.959964, 0.8, 10
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson["low"] == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-6)
    assert wilson["high"] == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-6)


def test_majority():
    verdicts = agreement.majority(labels_of(one="aagx", two="abgs", three="b-a-"))
    assert (verdicts["0"].verdict, verdicts["0"].share, verdicts["0"].voters) == ("a", 2 / 3, ("one", "two"))
    assert verdicts["1"].verdict is None and verdicts["1"].share == 0.5
    assert verdicts["2"].verdict == "tie_good" and verdicts["3"].verdict == "tie_bad" and verdicts["3"].votes == 1


def test_per_annotator():
    given = [label(0, "one", "a", left="a", ms=2000), label(1, "one", "b", left="a", ms=4000),
             label(2, "one", "tie_good", ms=9000), label(3, "one", "skip"), label(0, "two", "a"),
             label(1, "two", "a", ms=None, lengths={"a": 5, "b": 5})]
    one, two = agreement.per_annotator(given)
    assert (one["annotator"], one["labels"], one["median_seconds"]) == ("one", 3, 4.0)
    assert (one["left"]["estimate"], one["left"]["n"]) == (0.5, 2) and one["longer"]["estimate"] == 0.5
    assert (one["with_majority"]["estimate"], one["with_majority"]["n"]) == (0.5, 2)
    assert two["longer"]["n"] == 1 and two["median_seconds"] == 1.0
    table = agreement.as_table([one, two | {"median_seconds": None}])
    assert table.loc[0, "left"].startswith("0.50 (") and table.loc[1, "median_seconds"] == "–"


def test_too_little_to_say_is_none():
    alone, alike = labels_of(one="aabb"), labels_of(one="aaaa", two="aaaa")
    for figure in (agreement.percent_agreement, agreement.krippendorff_alpha):
        assert figure(alone) is None and figure([]) is None
    assert agreement.krippendorff_alpha(alike) is None and agreement.percent_agreement(alike)["estimate"] == 1
    assert agreement.cohen_kappa(alike, "one", "two") is None and agreement.cohen_kappa(alone, "one", "two") is None
    assert agreement.per_annotator([]) == []


def test_dawid_skene_trusts_whoever_is_reliable():
    """One careful and three careless annotators: votes are right less often than the model, which says how sure it is."""
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b"], 150)
    def said(accuracy):
        return "".join(t if rng.random() < accuracy else "ab"[t == "a"] for t in truth)
    labels = labels_of(careful=said(0.95), second=said(0.9), careless=said(0.55), worse=said(0.55), worst=said(0.55))
    found, votes = agreement.dawid_skene(labels), agreement.majority(labels)
    right = np.mean([found.loc[str(pair), "verdict"] == t for pair, t in enumerate(truth)])
    assert right > np.mean([votes[str(pair)].verdict == t for pair, t in enumerate(truth)]) and right > 0.9
    assert found["probability"].between(0.5, 1).all() and list(found.index) == [str(pair) for pair in range(150)]


def test_dawid_skene_knows_ties_and_nothing():
    found = agreement.dawid_skene(labels_of(one="gxaas", two="gxab-", three="gxaas"))
    assert list(found["verdict"][:3]) == ["tie_good", "tie_bad", "a"] and len(found) == 4
    assert agreement.dawid_skene([]).empty


def test_agreement_about_flags():
    """Two flag the same one of eight answers as unsafe: alpha 1. Of wrong, each flags another one: below chance."""
    one, two = labels_of(one="aabb", two="abab")[:4], labels_of(two="abab")
    flagged = [replace(label, flags={"a": ["unsafe"] + ["wrong"] * (label.annotator == "one")}) if label.comparison_id == "0"
               else replace(label, flags={"b": ["wrong"]}) if label.comparison_id == "1" and label.annotator == "two" else label
               for label in [*one, *two]]
    alphas = agreement.flag_agreement(flagged)
    assert alphas["unsafe"]["estimate"] == pytest.approx(1) and alphas["unsafe"]["n"] == 8
    assert alphas["wrong"]["estimate"] < 0 and alphas["other"] is None and agreement.flag_agreement([])["unsafe"] is None


def test_agreement_with_oneself_and_with_gold():
    first, again = labels_of(one="abags", two="aa---"), labels_of(one="aaags", two="sa---")
    found = agreement.self_agreement(first, again)
    assert (found["one"]["estimate"], found["one"]["n"]) == (0.75, 4) and (found["two"]["estimate"], found["two"]["n"]) == (1, 1)
    gold = agreement.gold_accuracy([(label(pair, "one", "a"), pair > 0) for pair in range(4)])
    assert (gold["one"]["estimate"], gold["one"]["n"]) == (0.75, 4) and agreement.gold_accuracy([]) == {}
