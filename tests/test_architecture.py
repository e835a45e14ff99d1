"""Imports run one way, from the stages down to data formats, and heavy libraries are loaded only where they are used."""

import ast
import sys
from pathlib import Path

import pytest

from rlhf_helpers import formats

PACKAGE = Path(formats.__file__).parent
LAYERS = [  # a module may import its own layer and those before it
    ("formats", "statistics", "notebook"),
    ("world.catalogue", "world.grammar", "world.judge", "world.annotators", "world.splits"),
    ("labelling", "labelling.schema", "labelling.records", "labelling.store", "labelling.history", "labelling.selection",
     "labelling.strip", "labelling.session",
     "labelling.agreement", "labelling.ratings", "labelling.export", "labelling.importing", "labelling.log",
     "labelling.plain_view", "labelling.widget", "labelling.chat", "labelling.view",
     "labelling.label_studio_annotations", "labelling.label_studio_files"),
    ("label_studio",),
    ("profiles", "runs"),
    ("models", "training"),
    ("base_model", "instructions", "sft", "rewards", "rejection", "rl", "dpo", "ppo", "personal"),
    ("assessment",),
    ("stages",),
    ("bars", "report_page", "report"),
    ("bootstrap", "colab", "series"),
]
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "peft", "tokenizers"}
TRAINS = {"models", "training", "base_model", "sft", "rewards", "rl", "dpo", "ppo"}  # the modules that use them
SPECIAL = {  # libraries that only these modules may load, here with the reason they are needed for
    "ipywidgets": {"labelling.plain_view"},  # the buttons
    "anywidget": {"labelling.widget"},  # the keyboard, and acts that wait in the browser
    "traitlets": {"labelling.widget"},
    "IPython": {"labelling.plain_view", "notebook"},  # display
    "matplotlib": {"notebook"},  # one look of all plots
    "evalica": {"labelling.agreement", "labelling.ratings"},
    "crowdkit": {"labelling.agreement"},  # Dawid and Skene
    "sklearn": {"labelling.agreement"},
    "pandas": {"labelling.agreement", "labelling.ratings"},
    "rouge_score": {"instructions"},
    "papermill": {"series"},
    "nbclient": {"series"},
    "psutil": {"series"},
    "PIL": {"series"},  # lighter pictures; comes with matplotlib
    "nbformat": {"series", "bootstrap"},
    "packaging": {"colab"},
    "requests": {"label_studio"},
}
USUAL = {"numpy", "scipy"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def imports(tree: ast.Module, at_start_only: bool = False):
    """Import statements of a module, those inside functions too unless only what its start runs is asked for."""
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        if not (at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            nodes.extend(ast.iter_child_nodes(node))


def own(module: str, tree: ast.Module, at_start_only: bool = False) -> set[str]:
    """The modules of the package that a module imports."""
    package = (["rlhf_helpers", *module.split(".")] if module in packages() else ["rlhf_helpers", *module.split(".")[:-1]])
    found = set()
    for node in imports(tree, at_start_only):
        if isinstance(node, ast.ImportFrom):
            base = [*package[:len(package) - node.level + 1], *filter(None, (node.module or "").split("."))] if node.level else (
                node.module.split("."))
            names = [".".join([*base, alias.name]) for alias in node.names]
            found |= {n if n.removeprefix("rlhf_helpers.") in MODULES else ".".join(base) for n in names}
        else:
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("rlhf_helpers.") for name in found if name.startswith("rlhf_helpers.")}


def packages() -> set[str]:
    return {module_name(path) for path in PACKAGE.rglob("__init__.py")}


def foreign(tree: ast.Module, at_start_only: bool = False) -> set[str]:
    """The libraries that a module imports, without Python's own."""
    found = set()
    for node in imports(tree, at_start_only):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"rlhf_helpers", "run"}


def test_every_module_has_its_layer():
    """A new module gets its place in `LAYERS` before anything else."""
    empty = {"world", ""}
    assert set(MODULES) - empty == set(RANK)


@pytest.mark.parametrize("module", [m for m in MODULES if m in RANK])
def test_no_module_imports_a_later_layer(module):
    assert not {other: LAYERS[RANK[other]] for other in own(module, MODULES[module]) if other in RANK and RANK[other] > RANK[module]}


@pytest.mark.parametrize("module", [m for m in MODULES if m in RANK])
def test_nothing_imports_a_notebook_a_test_or_in_a_circle(module):
    seen, left = set(), [module]
    while left:
        for other in own(left[-1], MODULES[left.pop()]):
            assert other != module, f"{module} imports itself by way of others"
            assert other in MODULES, f"{module} imports {other}, which is not there"
            if other not in seen:
                seen.add(other)
                left.append(other)


def test_the_two_ways_to_write_an_import_are_both_seen():
    assert {"formats", "instructions", "labelling.session", "world.splits", "sft"} <= own("stages", MODULES["stages"])
    assert "labelling.store" in own("labelling.session", MODULES["labelling.session"])
    assert "formats" in own("labelling.session", MODULES["labelling.session"])
    assert "bootstrap" in own("series", MODULES["series"])


@pytest.mark.parametrize("module", [m for m in MODULES if m not in TRAINS])
def test_heavy_libraries_only_where_models_are_used(module):
    assert not foreign(MODULES[module]) & HEAVY


@pytest.mark.parametrize("module", MODULES)
def test_every_library_has_its_place(module):
    allowed = USUAL | {name for name, where in SPECIAL.items() if module in where} | (HEAVY if module in TRAINS else set())
    assert foreign(MODULES[module]) <= allowed


def test_the_modules_before_the_training_start_without_it():
    """`stages` knows all stages, yet loads what trains only inside the functions that train."""
    heavy_starts = {module for module, tree in MODULES.items() if foreign(tree, at_start_only=True) & HEAVY}
    at_start, growing = set(), {"stages"}
    while growing:
        at_start |= growing
        growing = set().union(*(own(module, MODULES[module], at_start_only=True) for module in growing)) - at_start
    assert heavy_starts == TRAINS and not at_start & TRAINS
