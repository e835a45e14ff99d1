"""The small things that every notebook uses."""

import html
import math
import re

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_helpers import notebook
from rlhf_helpers.notebook import Progress, check, table

matplotlib.use("agg")


# --- check cells --------------------------------------------------------------------------------------------------------------

def test_a_good_value_passes_and_the_line_does_not_hold_it(capsys):
    check("accuracy", 0.8123, at_least=0.8)
    check("accuracy", 0.9, at_least=0.8)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second == "ok: accuracy is at least 0.8"
    check("control", 0.5, at_least=0.45, at_most=0.55)
    assert capsys.readouterr().out == "ok: control is at least 0.45 and at most 0.55\n"


def test_the_bar_itself_is_good_enough():
    check("a", 0.8, at_least=0.8)
    check("a", 0, at_most=0)


@pytest.mark.parametrize("value, bar, words", [
    (0.7123, dict(at_least=0.8), "at least 0.8, but is 0.7123"), (3, dict(at_most=2), "at most 2, but is 3"),
    (0.7, dict(at_least=0.45, at_most=0.55), "at least 0.45 and at most 0.55, but is 0.7"),
    (math.nan, dict(at_least=0), "but is nan"), (math.nan, dict(at_most=0), "but is nan"), (math.inf, dict(at_most=9), "but is inf"),
])
def test_a_bad_value_raises_and_is_named(value, bar, words, capsys):
    with pytest.raises(AssertionError, match=f"accuracy should be .*{re.escape(words)}"):
        check("accuracy", value, **bar)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [0.1, 0.9, math.nan])
def test_without_bars_it_says_so_and_never_raises(value, capsys):
    check("accuracy", value, at_least=0.8, bars=False)
    assert capsys.readouterr().out == "no bar for this profile: accuracy (at least 0.8 elsewhere)\n"


def test_a_check_without_a_bar_is_a_mistake():
    for bars in (True, False):
        with pytest.raises(TypeError, match="at_least or at_most"):
            check("accuracy", 1.0, bars=bars)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_check_agrees_with_the_comparison(value, bar):
    try:
        check("x", value, at_least=bar)
        passed = True
    except AssertionError:
        passed = False
    assert passed == (value >= bar)


# --- tables and progress ------------------------------------------------------------------------------------------------------

def test_a_table_escapes_everything():
    bad = "<script>alert('x')</script> & \"quotes\""
    shown = table([["row", bad], [bad, 3]], ["name", bad]).data
    assert "<script" not in shown and "alert('x')" not in shown
    assert shown.count(html.escape(bad)) == 3
    assert shown.count("<tr>") == 3 and "scope='col'" in shown and ">3</td>" in shown


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_a_table_has_a_cell_for_each_value(rows):
    shown = table(rows, ["a", "b"]).data
    assert re.findall(r"<td [^>]*>(.*?)</td>", shown, re.DOTALL) == [html.escape(cell) for row in rows for cell in row]


def test_progress_is_silent_outside_notebooks(capfd):
    progress = Progress("Training", every=0)
    for step in range(4):
        progress.update(step, 3, "loss 0.5")
    progress.done()
    assert capfd.readouterr() == ("", "")
    assert not notebook.in_notebook()


def test_progress_in_a_notebook_is_one_line_that_changes(monkeypatch, capsys):
    shown = []

    class Handle:
        def update(self, page):
            shown.append(("update", page.data))

    def display(page, display_id):
        shown.append(("display", page.data))
        return Handle()

    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    progress = Progress("<b>SFT</b>", every=0)
    progress.update(1, 2, "<i>0.5</i>")
    progress.update(2, 2)
    progress.done()
    assert [kind for kind, _ in shown] == ["display", "update"]
    assert "value='1' max='2'" in shown[0][1] and "&lt;b&gt;SFT" in shown[0][1] and "<i>" not in shown[0][1]
    assert re.fullmatch(r"<b>SFT</b>: done in \d+ s\n", capsys.readouterr().out)


def test_progress_redraws_seldom_but_always_at_the_end(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda page, display_id: shown.append(page.data) or
                        type("Handle", (), {"update": lambda self, page: shown.append(page.data)})())
    progress = Progress("SFT", every=60)
    for step in range(1, 51):
        progress.update(step, 50)
    assert len(shown) == 2 and "1 of 50" in shown[0] and "50 of 50" in shown[1]


# --- plots --------------------------------------------------------------------------------------------------------------------

def test_curves_differ_in_colour_and_marker():
    figure, axis = notebook.new_figure()
    for index in range(len(notebook.COLOURS)):
        notebook.plot_curve(axis, [1, 2], [0.1, 0.2], f"line {index}", index)
    looks = {(line.get_color(), line.get_marker()) for line in axis.lines}
    assert len(looks) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(notebook.COLOURS)
    matplotlib.pyplot.close(figure)


def test_estimates_are_drawn_with_their_intervals():
    estimates = [{"estimate": 0.5, "low": 0.4, "high": 0.7, "n": 9}, {"estimate": 0.9, "low": 0.85, "high": 0.92, "n": 9}]
    figure, axis = notebook.new_figure()
    notebook.plot_estimates(axis, ["base", "sft"], estimates, "rubric")
    assert axis.get_xlabel() == "rubric"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["base", "sft"]
    spans = [collection.get_segments()[0][:, 0].tolist() for collection in axis.collections]
    assert spans == [pytest.approx([0.4, 0.7]), pytest.approx([0.85, 0.92])]
    matplotlib.pyplot.close(figure)


def test_a_known_miss_is_said_and_does_not_raise(capsys):
    notebook.check("win rate", 0.6, at_least=0.8, known_miss=True)
    notebook.check("win rate", 0.9, at_least=0.8, known_miss=True)
    assert capsys.readouterr().out.splitlines() == ["open, see the README: win rate should be at least 0.8"] * 2


def test_the_live_curve_redraws_one_figure_up_to_the_last_step(monkeypatch):
    """Rows that come faster than it draws are in the next drawing; outside of a notebook nothing is shown."""
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(("update", figure))

    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: shown.append(("display", figure)) or Handle())
    curve = notebook.LiveCurve(4, {"reward": "reward", "kl": "KL (nats)"}, every=1000)
    curve({"step": 1, "reward": 0.5, "kl": 0.0})
    assert shown == []
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    for step in (2, 3, 4):
        curve({"step": step, "reward": 0.5 * step, "kl": 0.1})
    assert [kind for kind, _ in shown] == ["display", "update"]
    lines = [axis.lines[0] for axis in shown[-1][1].axes]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2, 3, 4]] * 2
    assert lines[0].get_ydata().tolist() == [0.5, 1.0, 1.5, 2.0]
    assert [axis.get_ylabel() for axis in shown[-1][1].axes] == ["reward", "KL (nats)"]
