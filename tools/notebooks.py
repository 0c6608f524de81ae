"""Execute the notebooks: `build` into build/, with pages that show what was made; `refresh` in place."""

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
from typing import NamedTuple

import jupytext
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, BUILD, DOCS = ROOT / "notebooks", ROOT / "build", ROOT / "docs"
README_PICTURE = ("05_predictions", "The average is pale between")  # the notebook and the figure's title
CELL_TIMEOUT = 600  # seconds

TITLE = "Bayesian neural networks on one flat vector"
INTRODUCTION = "Notebooks to be read in this order; below, all their pictures. Words in bold are in the glossary."
TEMPLATE = Path(__file__).with_name("page.html.j2")
LINK = re.compile(r"(\]\((?!\w+:)[^)#]+)\.(?:ipynb|md)(?=[)#])")  # in Markdown, to a page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["build", "refresh"])
    parser.add_argument("only", nargs="*", help="names of notebooks, such as 03_hmc; all without")
    arguments = parser.parse_args()
    sources = [path for path in sorted(NOTEBOOKS.glob("*.py")) if not arguments.only or path.stem in arguments.only]
    if not sources:
        sys.exit(f"no notebook is called {' or '.join(arguments.only)}; there are {NOTEBOOKS}/*.py")
    # Bars that move are for the terminal and the browser; what is stored has to be the same every time.
    os.environ["TQDM_DISABLE"] = "1"
    {"build": build, "refresh": refresh}[arguments.what](sources)


def build(sources: list[Path]) -> None:
    """Execute into build/, with a page of each, also of notebooks that fail: with what they made until then."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir()
    executions = {}
    for source in sources:
        executions[source.stem] = execution = execute(source, BUILD)
        nbformat.write(execution.notebook, BUILD / f"{source.stem}.ipynb")
    for text in NOTEBOOKS.glob("*.md"):  # which the notebooks link to
        shutil.copy(text, BUILD)
    write_pages(BUILD, {name: execution.notebook for name, execution in executions.items()}, executions)
    print(f"\nThe notebooks are in {BUILD.name}/, and {BUILD.name}/index.html shows what was made.")
    print("Open them live in JupyterLab with:  make lab", flush=True)
    exit_with_failures(executions)


def write_pages(
    folder: Path, notebooks: dict[str, NotebookNode], executions: dict[str, Execution] | None = None
) -> None:
    """A page for each notebook and each Markdown file beside them, and an index; all that they show is in them.

    Args:
        notebooks: name -> notebook, in the order to read them in.
        executions: name -> what came of executing it, for the index and to mark what failed.
    """
    executions = executions or {}
    contents = [{"name": name, "title": title_of(notebook)} for name, notebook in notebooks.items()]
    for before, page, after in zip([None, *contents], contents, [*contents[1:], None], strict=False):
        name = page["name"]
        failure = executions[name].failure if name in executions else None
        write_page(folder, name, notebooks[name], previous=before, next=after, failure=failure)
    texts = {path.stem: in_markdown(path.read_text()) for path in sorted(NOTEBOOKS.glob("*.md"))}
    for name, text in texts.items():
        write_page(folder, name, text)
    items = [f"- [{page['title']}]({page['name']}.html){remark(page['name'], executions)}" for page in contents]
    items += [f"- [{title_of(text)}]({name}.html)" for name, text in texts.items()]
    illustrated = [notebook for notebook in notebooks.values() if images(notebook)]
    pictures = [f"## {title_of(notebook)}\n{' '.join(images(notebook))}" for notebook in illustrated]
    write_page(folder, "index", in_markdown(f"# {TITLE}\n{INTRODUCTION}", "\n".join(items), *pictures))


def remark(name: str, executions: dict[str, Execution]) -> str:
    """What the index says of an execution, in Markdown: what it took, and what failed, with a link to the cell."""
    if name not in executions:
        return ""
    _, seconds, megabytes, failure = executions[name]
    cost = f" ({seconds:.0f} s, {megabytes:.0f} MB)"
    if failure is None:
        return cost
    page = f"{name}.html#cell-id={failure.cell_id}" if failure.cell_id else f"{name}.html"
    reason = failure.reason.replace("`", "'")  # a backtick would end the code that it is shown as
    return f'{cost}, <strong class="failed">failed</strong> [{failure.place}]({page}): `{reason}`'


def write_page(
    folder: Path,
    name: str,
    notebook: NotebookNode,
    previous: dict[str, str] | None = None,
    next: dict[str, str] | None = None,
    failure: Failure | None = None,
) -> None:
    """``folder/name.html``; of its neighbours, name and title; of a failure, the cell marked."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(r"\1.html", cell.source)
    resources = {"metadata": {"name": title_of(notebook)}, "previous": previous, "next": next, "failure": failure}
    page, _ = HTMLExporter(template_file=str(TEMPLATE)).from_notebook_node(notebook, resources)
    (folder / f"{name}.html").write_text(page)


def in_markdown(*texts: str) -> NotebookNode:
    return new_notebook(cells=[new_markdown_cell(text) for text in texts])


def refresh(sources: list[Path]) -> None:
    """Execute in place and store the outputs that the tests compare with, and the README's pictures.

    What a notebook that fails had stored stays as it was.
    """
    DOCS.mkdir(exist_ok=True)
    executions = {}
    for source in sources:
        executions[source.stem] = execution = execute(source, NOTEBOOKS)
        if execution.failure:
            continue
        nbformat.write(execution.notebook, source.with_suffix(".ipynb"))
        name, title = README_PICTURE
        if source.stem == name:
            (picture,) = [image for image in images(execution.notebook) if title in image]
            (DOCS / "posterior.png").write_bytes(base64.b64decode(picture.split("base64,")[1].split('"')[0]))
            shutil.copy(NOTEBOOKS / "results.gif", DOCS / "results.gif")
    exit_with_failures(executions)


class Failure(NamedTuple):
    """Why a notebook was not executed to its end."""

    reason: str  # one line, such as "AssertionError: the chains agree"
    number: int = 0  # of the code cell, counted from 1 as in its prompt; 0: none was begun
    cell_id: str | None = None

    @property
    def place(self) -> str:
        return f"in cell {self.number}" if self.number else "before its first cell"


class Execution(NamedTuple):
    """What came of executing a notebook."""

    notebook: NotebookNode  # with its outputs, as far as it came
    seconds: float
    megabytes: float  # the most that its kernel and what that started held
    failure: Failure | None = None


def execute(source: Path, folder: Path) -> Execution:
    """Run the notebook that ``source`` is the text of, in ``folder``. Whatever fails is in what it returns."""
    notebook, begun, failure = in_markdown(f"# {source.stem}\nThis notebook could not be read."), [], None
    started = time.perf_counter()
    with tqdm(desc=source.stem, unit="cell", disable=False) as bar, watch_memory() as peak:
        try:
            notebook = read(source)
            bar.reset(total=sum(cell.cell_type == "code" for cell in notebook.cells))
            NotebookClient(
                notebook,
                timeout=CELL_TIMEOUT,
                extra_arguments=["--log-level=ERROR"],  # else every kernel's start warns of its local connection
                record_timing=False,
                store_widget_state=False,
                resources={"metadata": {"path": str(folder)}},
                on_cell_execute=lambda cell, **_: begun.append(cell),
                on_cell_executed=lambda **_: bar.update(),
            ).execute()
        except Exception as error:  # no text, a wrong claim, a dead kernel, a cell that takes too long: all of them
            print(f"\n{source.stem} failed:\n{type(error).__name__}: {strip_ansi(str(error))}", file=sys.stderr)
            failure = failure_of(error, begun)
    return Execution(notebook, time.perf_counter() - started, peak() / 1e6, failure)


def read(source: Path) -> NotebookNode:
    """The notebook that ``source`` is the text of, without outputs."""
    notebook = jupytext.read(source)
    if not notebook.cells:
        raise ValueError(f"{source.name} has no cells")
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # ids that depend on nothing, so that an unchanged notebook stays unchanged
    return notebook


def failure_of(error: Exception, begun: list[NotebookNode]) -> Failure:
    """What failed, and where. The last cell begun gets the error among its outputs, unless its kernel put one there."""
    name, message = type(error).__name__, str(error)
    if isinstance(error, CellExecutionError):
        name, message = error.ename, error.evalue
    reason = f"{name}: {strip_ansi(message).strip()}".splitlines()[0].removesuffix(": ")
    if not begun:
        return Failure(reason)
    cell = begun[-1]
    if not any(output.output_type == "error" for output in cell.outputs):
        cell.outputs.append(new_output("error", ename=name, evalue=message, traceback=[reason]))
    return Failure(reason, len(begun), cell.id)


def exit_with_failures(executions: dict[str, Execution]) -> None:
    """End with what failed, if anything did, and a status that says so."""
    failures = {name: execution.failure for name, execution in executions.items() if execution.failure}
    if failures:
        lines = [f"  {name} failed {failure.place}: {failure.reason}" for name, failure in failures.items()]
        sys.exit("\n".join([f"\n{len(failures)} of {len(executions)} notebooks failed:", *lines]))


@contextmanager
def watch_memory() -> Iterator[Callable[[], int]]:
    """While it is open, watch the processes that this one started; the function tells the most bytes they held at once.

    What they share, most of it libraries, counts once where it can be told apart, which is on Linux, and else for each.
    """
    peak, is_over = 0, threading.Event()

    def bytes_of(process: psutil.Process) -> tuple[int, int]:
        """Its own, and shared ones."""
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:  # it has ended since it was listed
            return 0, 0
        shared = getattr(memory, "shared", 0)
        return memory.rss - shared, shared

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.05):
            found = [bytes_of(process) for process in psutil.Process().children(recursive=True)]
            if found:
                own, shared = zip(*found, strict=True)
                peak = max(peak, sum(own) + max(shared))

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
