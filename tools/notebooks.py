"""Execute the notebooks: `build` into build/, with a site that shows what was made; `refresh` in place.

`html` makes the same site in build/site from the stored notebooks, without executing them.
"""

from __future__ import annotations

import argparse
import base64
import copy
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jupytext
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, BUILD, DOCS = ROOT / "notebooks", ROOT / "build", ROOT / "docs"
README_PICTURE = ("05_predictions", "The average is pale between")  # the notebook and the figure's title

TITLE = "Bayesian neural networks on one flat vector"
INTRODUCTION = "Notebooks to be read in this order; below, all their pictures. Words in bold are in the glossary."
TEMPLATE = Path(__file__).with_name("page.html.j2")
LINK = re.compile(r"(\]\((?!\w+:)[^)#]+)\.(?:ipynb|md)(?=[)#])")  # in Markdown, to a page of the site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["build", "html", "refresh"])
    parser.add_argument("only", nargs="*", help="names of notebooks, such as 03_hmc; all without")
    arguments = parser.parse_args()
    sources = [path for path in sorted(NOTEBOOKS.glob("*.py")) if not arguments.only or path.stem in arguments.only]
    if not sources:
        sys.exit(f"no notebook is called {' or '.join(arguments.only)}; there are {NOTEBOOKS}/*.py")
    # Bars that move are for the terminal and the browser; what is stored has to be the same every time.
    os.environ["TQDM_DISABLE"] = "1"
    {"build": build, "html": html, "refresh": refresh}[arguments.what](sources)


def build(sources: list[Path]) -> None:
    """Execute into build/ and write the site there."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir()
    notebooks, costs = {}, {}
    for source in sources:
        notebooks[source.stem], seconds, megabytes = execute(source, BUILD)
        costs[source.stem] = f" ({seconds:.0f} s, {megabytes:.0f} MB)"
        nbformat.write(notebooks[source.stem], BUILD / f"{source.stem}.ipynb")
    for text in NOTEBOOKS.glob("*.md"):  # which the notebooks link to
        shutil.copy(text, BUILD)
    write_site(BUILD, notebooks, costs)
    print(f"\nThe notebooks are in {BUILD.name}/, and {BUILD.name}/index.html shows what was made.")
    print("Open them live in JupyterLab with:  make lab")


def html(sources: list[Path]) -> None:
    """Write the site of the stored notebooks into build/site."""
    site = BUILD / "site"
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    write_site(site, {source.stem: nbformat.read(source.with_suffix(".ipynb"), as_version=4) for source in sources})
    print(f"Open {site.relative_to(ROOT)}/index.html in a browser.")


def write_site(folder: Path, notebooks: dict[str, NotebookNode], costs: dict[str, str] | None = None) -> None:
    """A page for each notebook and each Markdown file beside them, and an index; all that they show is in them.

    Args:
        notebooks: name -> notebook, in the order to read them in.
        costs: name -> what it took to execute, for the index.
    """
    contents = [{"name": name, "title": title_of(notebook)} for name, notebook in notebooks.items()]
    for before, page, after in zip([None, *contents], contents, [*contents[1:], None], strict=False):
        write_page(folder, page["name"], notebooks[page["name"]], previous=before, next=after)
    texts = {path.stem: in_markdown(path.read_text()) for path in sorted(NOTEBOOKS.glob("*.md"))}
    for name, text in texts.items():
        write_page(folder, name, text)
    items = [f"- [{page['title']}]({page['name']}.html){(costs or {}).get(page['name'], '')}" for page in contents]
    items += [f"- [{title_of(text)}]({name}.html)" for name, text in texts.items()]
    pictures = [f"## {title_of(notebook)}\n{' '.join(images(notebook))}" for notebook in notebooks.values()]
    write_page(folder, "index", in_markdown(f"# {TITLE}\n{INTRODUCTION}", "\n".join(items), *pictures))


def write_page(
    folder: Path,
    name: str,
    notebook: NotebookNode,
    previous: dict[str, str] | None = None,
    next: dict[str, str] | None = None,
) -> None:
    """``folder/name.html``; of its neighbours, name and title."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(r"\1.html", cell.source)
    resources = {"metadata": {"name": title_of(notebook)}, "previous": previous, "next": next}
    page, _ = HTMLExporter(template_file=str(TEMPLATE)).from_notebook_node(notebook, resources)
    (folder / f"{name}.html").write_text(page)


def in_markdown(*texts: str) -> NotebookNode:
    return new_notebook(cells=[new_markdown_cell(text) for text in texts])


def refresh(sources: list[Path]) -> None:
    """Execute in place and store the outputs that the tests compare with, and the README's pictures."""
    DOCS.mkdir(exist_ok=True)
    for source in sources:
        notebook, *_ = execute(source, NOTEBOOKS)
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        name, title = README_PICTURE
        if source.stem == name:
            (picture,) = [image for image in images(notebook) if title in image]
            (DOCS / "posterior.png").write_bytes(base64.b64decode(picture.split("base64,")[1].split('"')[0]))
            shutil.copy(NOTEBOOKS / "results.gif", DOCS / "results.gif")


def execute(source: Path, folder: Path) -> tuple[NotebookNode, float, float]:
    """Run the notebook that ``source`` is the text of, in ``folder``.

    Returns:
        the notebook with its outputs; seconds; the most megabytes that its kernel and what that started held.
    """
    notebook = jupytext.read(source)
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # ids that depend on nothing, so that an unchanged notebook stays unchanged
    code = sum(cell.cell_type == "code" for cell in notebook.cells)
    started = time.perf_counter()
    with tqdm(total=code, desc=source.stem, unit="cell", disable=False) as bar, watch_memory() as peak:
        client = NotebookClient(
            notebook,
            timeout=600,
            extra_arguments=["--log-level=ERROR"],  # else every kernel's start warns of its local connection
            record_timing=False,
            store_widget_state=False,
            resources={"metadata": {"path": str(folder)}},
            on_cell_executed=lambda **_: bar.update(),
        )
        try:
            client.execute()
        except CellExecutionError as error:
            sys.exit(f"\n{source.stem} failed:\n{error}")
    return notebook, time.perf_counter() - started, peak() / 1e6


@contextmanager
def watch_memory() -> Iterator[Callable[[], int]]:
    """While it is open, watch the processes that this one started; the function tells the most bytes they held at once.

    Pages that processes share count for each of them, so the truth may be less, and never more.
    """
    peak, is_over = 0, threading.Event()

    def bytes_of(process: psutil.Process) -> int:
        try:
            return process.memory_info().rss
        except psutil.NoSuchProcess:  # it has ended since it was listed
            return 0

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.05):
            peak = max(peak, sum(map(bytes_of, psutil.Process().children(recursive=True))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak
    finally:
        is_over.set()
        thread.join()


def title_of(notebook: NotebookNode) -> str:
    return notebook.cells[0].source.split("\n")[0].lstrip("# ")


def images(notebook: NotebookNode) -> list[str]:
    """All pictures among the outputs, as HTML."""
    shown = [
        output.get("data", {}).get("text/html", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    return [html for html in shown if html.startswith("<img ")]


if __name__ == "__main__":
    main()
