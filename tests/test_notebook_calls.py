"""Every call in a notebook or a solution fits the function that it calls.

Solutions are executed by nothing but `run.py refresh`, half an hour of work; here they cannot stay behind when a function changes.
"""

import ast
import importlib
import inspect
from pathlib import Path

import nbformat
import pytest

from rlhf_helpers.bootstrap import first_cell
from rlhf_helpers.series import NOTEBOOKS, numbered

PACKAGE = "rlhf_helpers"
PAGES = numbered(NOTEBOOKS) + numbered(NOTEBOOKS / "solutions")


def code_of(path: Path) -> ast.Module:
    """All cells of a notebook but the common first one, as one program."""
    sources = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return ast.parse("\n".join(source for source in sources if source != first_cell()))


def imports_of(program: ast.AST) -> dict:
    """What a program calls the modules and objects that it imports from the package; ImportError if one is not there."""
    found = {}
    for node in ast.walk(program):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(PACKAGE):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):  # a module of a package, that nobody has imported yet
                    importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = getattr(module, name.name)
    return found


def assigned_in(program: ast.AST) -> set[str]:
    """Names that the program itself gives to something: they may be anything."""
    names = {node.id for node in ast.walk(program) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    names |= {node.arg for node in ast.walk(program) if isinstance(node, ast.arg)}
    return names | {node.name for node in ast.walk(program) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def misfits(program: ast.AST) -> list[str]:
    """The uses of `rlhf_helpers` that cannot work: attributes that are not there, arguments that a function does not take."""
    known, faults = imports_of(program), []
    for name in assigned_in(program):
        known.pop(name, None)

    def meant(node):
        """The object behind a name or a dotted name, if it is certain; AttributeError if a module has no such part."""
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute) and (inspect.ismodule(whole := meant(node.value)) or inspect.isclass(whole)):
            return getattr(whole, node.attr)
        return None

    for node in ast.walk(program):
        try:
            if isinstance(node, ast.Attribute):
                meant(node)
            elif isinstance(node, ast.Call) and callable(called := meant(node.func)):
                fits(called, node)
        except (AttributeError, TypeError) as error:
            faults.append(f"{ast.unparse(node)[:100]}: {error}")
    return faults


def fits(called, node: ast.Call) -> None:
    """Raises TypeError if the function cannot take these arguments; what a star brings is not known, and may be any of them."""
    if any(isinstance(each, ast.Starred) for each in node.args) or any(each.arg is None for each in node.keywords):
        signature, names = inspect.signature(called), {each.arg for each in node.keywords} - {None}
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()) and names - set(signature.parameters):
            raise TypeError(f"got an unexpected keyword argument {min(names - set(signature.parameters))!r}")
        return
    inspect.signature(called).bind(*node.args, **{each.arg: each.value for each in node.keywords})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_call_fits(path):
    assert misfits(code_of(path)) == []


def test_calls_of_the_series_are_seen():
    called = [ast.unparse(node.func) for path in PAGES for node in ast.walk(code_of(path)) if isinstance(node, ast.Call)]
    assert {"need", "check", "open_run"} <= set(called) and len(PAGES) >= 20


@pytest.mark.parametrize("line, says", [
    ("models.no_such_thing", "no attribute"),
    ("models.sample(1, 2, 3, fast=True)", "unexpected keyword"),
    ("models.sample(1)", "missing a required"),
    ("sample(*many, fast=True)", "unexpected keyword"),
    ("Training(3e-4)", "missing a required"),
])
def test_a_call_that_does_not_fit_is_found(line, says):
    program = "from rlhf_helpers import models\nfrom rlhf_helpers.models import sample\nfrom rlhf_helpers.profiles import Training\n"
    assert says in "".join(misfits(ast.parse(program + line)))


@pytest.mark.parametrize("line", [
    "models.sample(1, 2, ['a'], seed=0)", "sample(*many)", "Training(3e-4, batch_size=8)", "sample = print\nsample(1)", "other(1, 2)"])
def test_others_are_let_be(line):
    program = "from rlhf_helpers import models\nfrom rlhf_helpers.models import sample\nfrom rlhf_helpers.profiles import Training\n"
    assert misfits(ast.parse(program + line)) == []
