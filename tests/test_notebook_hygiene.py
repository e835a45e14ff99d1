"""The committed notebooks as files: complete, clean, small, and of the shape that the series promises."""

import ast
import re

import nbformat
import pytest
from nbconvert.filters import markdown2html

from rlhf_helpers.bootstrap import ROOT, first_cell
from rlhf_helpers.series import NOTEBOOKS, WIDGET_VIEW, numbered

NUMBERED = numbered(NOTEBOOKS)
ALL = NUMBERED + numbered(NOTEBOOKS / "solutions")
MACHINE_PATH = re.compile(r"(?<![\w/])(/home/|/root/|/Users/|/tmp/|/opt/|/work/|/var/folders/)\w|\b[A-Z]:\\\\?\w+\\")
LARGEST_FILE, LARGEST_PICTURE = 500_000, 200_000
WIDEST = 120  # characters

of_all = pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(NOTEBOOKS).stem)
of_numbered = pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)


def cells(path, kind=None):
    return [cell for cell in nbformat.read(path, as_version=4).cells if kind in (None, cell.cell_type)]


def outputs(path):
    return [(cell.execution_count, output) for cell in cells(path, "code") for output in cell.outputs]


@of_all
def test_is_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < LARGEST_FILE


@of_all
def test_was_run_from_top_to_bottom_by_the_usual_kernel(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1)), "run: python3 run.py refresh"
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@of_all
def test_holds_no_error_no_stderr_and_no_widget(path):
    assert "widgets" not in nbformat.read(path, as_version=4).metadata
    for count, output in outputs(path):
        assert output.output_type != "error", f"In [{count}] ended in an error"
        assert output.get("name") != "stderr", f"In [{count}] wrote to stderr: {output.text}"
        assert WIDGET_VIEW not in output.get("data", {}), f"In [{count}] stored a widget"


@of_all
def test_names_no_path_of_a_machine(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        found = None if '"image/png"' in line else MACHINE_PATH.search(line)
        assert not found, f"{found.group()} in: {line.strip()[:200]}"


@of_all
def test_pictures_are_small(path):
    for count, output in outputs(path):
        for kind, data in output.get("data", {}).items():
            size = len("".join(data)) if kind.startswith("image/") else 0
            assert size <= LARGEST_PICTURE, f"In [{count}]: a picture of {size} characters"


@of_all
def test_starts_with_the_common_first_cell(path):
    assert cells(path, "code")[0].source == first_cell(), "run: python -m rlhf_helpers.bootstrap"


@of_all
def test_code_cells_are_short(path):
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= 25, f"In [{cell.execution_count}]"


@of_numbered
def test_no_line_is_cut_off(path):
    """JupyterLab cuts longer code lines and breaks longer printed ones in the middle of a word."""
    for cell in cells(path, "code")[1:]:
        printed = [line for output in cell.outputs if output.output_type == "stream" for line in output.text.splitlines()]
        assert [line for line in cell.source.splitlines() + printed if len(line) > WIDEST] == [], f"In [{cell.execution_count}]"


@of_numbered
def test_has_checked_cells_and_more_text_than_code(path):
    checked = [cell for cell in cells(path, "code") if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert len(checked) >= 2 and all(cell.outputs for cell in checked)
    assert len(cells(path, "markdown")) >= len(cells(path, "code"))


def left_raw(markdown):
    """Pieces of Markdown that a reader would see as such: links, bold type, code and tables that are not rendered."""
    text = re.sub(r"<[^>]+>", "", re.sub(r"(?s)<(code|pre)\b.*?</\1>", "", markdown2html(markdown)))
    return re.findall(r"(?m).{0,30}(?:\]\(|\*\*|`|^ *\|).{0,30}", re.sub(r"(?s)\$\$.*?\$\$|\$[^$]*\$", "", text))


@of_all
def test_text_is_rendered(path):
    assert [piece for cell in cells(path, "markdown") for piece in left_raw(cell.source)] == []


def test_the_readme_is_rendered():
    assert left_raw((ROOT / "README.md").read_text(encoding="utf-8")) == []


def test_raw_markdown_is_recognised():
    assert left_raw("<!-- note -->[![a](b.svg)](c)") and left_raw("Text\n**bold **text") and not left_raw("[a](b) **c** `*` $a|b$")


@of_numbered
def test_what_the_checks_printed_is_what_they_say(path):
    """Who edits a check and forgets to run the notebook again hears of it in a second here, not after twenty minutes of nbval."""
    for cell in cells(path, "code"):
        if "NBVAL_CHECK_OUTPUT" in cell.source:
            printed = "".join(output.get("text", "") for output in cell.outputs)
            for part in parts_of_checks(cell.source):
                assert part in printed, f"In [{cell.execution_count}] did not print {part!r}: run python3 run.py refresh"


def parts_of_checks(source):
    """What the calls of `check` in this code must print: their texts and bounds, as far as they stand there as they are."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "check":
            words = {"what": call.args[0]} | {keyword.arg: keyword.value for keyword in call.keywords}
            for name, value in words.items():
                if isinstance(value, ast.Constant) and name in ("what", "at_least", "at_most"):
                    yield value.value if name == "what" else f"{name.replace('_', ' ')} {value.value:g}"


def test_parts_of_checks_are_found():
    source = 'check("a rate", rate, at_least=0.80, bars=True)\nfor name in names:\n    check(f"{name} is", 3, at_most=bound)'
    assert list(parts_of_checks(source)) == ["a rate", "at least 0.8"]


@pytest.mark.parametrize("text", ["see /home/me/x", "'/home/a'", "/tmp/x", r"C:\\Users\\me", "/Users/me/x"])
def test_paths_of_machines_are_recognised(text):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://a.org/home/x", "/content/RLHF", "runs/practice/sft", "a/tmp/b", "N: \\n"])
def test_other_paths_are_let_be(text):
    assert not MACHINE_PATH.search(text)


def test_the_notebooks_are_those_of_the_repository():
    assert NOTEBOOKS == ROOT / "notebooks"
