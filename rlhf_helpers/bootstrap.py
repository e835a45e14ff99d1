"""The first cell and the badges of every notebook, both made from the one setting in pyproject.toml.

    python -m rlhf_helpers.bootstrap     writes them into every notebook, and the badges into README.md

The badges are known by the line that they stand in, which begins with the one for Binder; the first cell by its first line.
"""

import re
import tomllib
from pathlib import Path

import nbformat

from rlhf_helpers.formats import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
FIRST_LINE = "# First cell of every notebook: find the helper package (on Colab, fetch the series first)."
BADGES = re.compile(r"^\[!\[Open on Binder\].*$", re.MULTILINE)  # no comment around it: Markdown is not read in the line of one


def home():
    """Return the repository ("owner/name") and the branch that the series is read from."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["rlhf"]
    return settings["repository"], settings["branch"]


def first_cell():
    """Return the source of the first code cell of each notebook."""
    repository, branch = home()
    folder = "/content/" + repository.split("/")[1]
    clone = f"git clone -q --depth 1 -b {branch} https://github.com/{repository} {folder}"
    return f"""{FIRST_LINE}
import os, subprocess, sys
from pathlib import Path

if "google.colab" in sys.modules:
    if not Path("{folder}").exists():
        subprocess.run("{clone}".split(), check=True)
    os.chdir("{folder}/notebooks")
sys.path.insert(0, next(str(folder) for folder in Path.cwd().parents if (folder / "rlhf_helpers").is_dir()))
if "google.colab" in sys.modules:
    from rlhf_helpers import colab
    colab.prepare()"""


def badges(notebook_name):
    """Return the line with the Binder and Colab badges of a notebook, such as "05_reward_model"."""
    repository, branch = home()
    path = f"notebooks/{notebook_name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{repository}/{branch}?urlpath=lab/tree/{path}"
    colab = f"https://colab.research.google.com/github/{repository}/blob/{branch}/{path}"
    return (
        f"[![Open on Binder](https://mybinder.org/badge_logo.svg)]({binder}) "
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    )


def with_badges(text, notebook_name):
    """Return a Markdown text with its badges brought up to date, or put below its first line if it had none."""
    line = badges(notebook_name)
    if BADGES.search(text):
        return BADGES.sub(lambda match: line, text, count=1)
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{line}\n\n{rest.lstrip()}".rstrip()


def dress(notebook, notebook_name):
    """Give a notebook its badges and its first cell, in place; raise ValueError if it starts without a text cell."""
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        raise ValueError(f"{notebook_name}: its first cell has to be a text cell with its title")
    notebook.cells[0].source = with_badges(notebook.cells[0].source, notebook_name)
    index = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), len(notebook.cells))
    ours = index < len(notebook.cells) and notebook.cells[index].source.startswith(FIRST_LINE)
    if not ours:
        notebook.cells.insert(index, nbformat.v4.new_code_cell())
    notebook.cells[index].source = first_cell()


def main():
    for path in sorted((ROOT / "notebooks").rglob("[0-9][0-9]_*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        notebook = nbformat.read(path, as_version=4)
        dress(notebook, path.relative_to(ROOT / "notebooks").with_suffix("").as_posix())
        atomic_write_text(path, nbformat.writes(notebook) + "\n")
        print(f"written: {path.relative_to(ROOT)}")
    readme = ROOT / "README.md"
    if readme.exists() and BADGES.search(readme.read_text(encoding="utf-8")):
        atomic_write_text(readme, with_badges(readme.read_text(encoding="utf-8"), "00_start_here"))
        print("written: README.md")


if __name__ == "__main__":
    main()
