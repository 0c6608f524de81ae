"""Execute the notebooks: `build` into build/, with a page that shows what was made; `refresh` in place."""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, BUILD, DOCS = ROOT / "notebooks", ROOT / "build", ROOT / "docs"
README_PICTURE = ("05_predictions", "The average is pale between")  # the notebook and the figure's title

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>Bayesian neural networks on one flat vector</title>
<style>body{{font-family:sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;line-height:1.5}}
img{{max-width:100%}}li{{margin:.3rem 0}}</style>
<h1>What was made</h1>
<ul>{items}</ul>
<h2>The sampler at work</h2><img src="results.gif" alt="Animated contours of the prediction over draws">
{pictures}</html>
"""


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
    """Execute into build/, export to HTML and write the page."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir()
    items, pictures = [], []
    for source in sources:
        notebook, seconds = execute(source, BUILD)
        nbformat.write(notebook, BUILD / f"{source.stem}.ipynb")
        body, _ = HTMLExporter().from_notebook_node(notebook)
        (BUILD / f"{source.stem}.html").write_text(body.replace(".ipynb", ".html"))
        title = title_of(notebook)
        items.append(f'<li><a href="{source.stem}.html">{title}</a> ({seconds:.0f} s)</li>')
        pictures.append(f"<h2>{title}</h2>{''.join(images(notebook))}")
    (BUILD / "index.html").write_text(PAGE.format(items="".join(items), pictures="".join(pictures)))
    print(f"\nThe notebooks are in {BUILD.name}/, and {BUILD.name}/index.html shows what was made.")
    print("Open them live in JupyterLab with:  make lab")


def refresh(sources: list[Path]) -> None:
    """Execute in place and store the outputs that the tests compare with, and the README's pictures."""
    DOCS.mkdir(exist_ok=True)
    for source in sources:
        notebook, _ = execute(source, NOTEBOOKS)
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        name, title = README_PICTURE
        if source.stem == name:
            (picture,) = [image for image in images(notebook) if title in image]
            (DOCS / "posterior.png").write_bytes(base64.b64decode(picture.split("base64,")[1].split('"')[0]))
            shutil.copy(NOTEBOOKS / "results.gif", DOCS / "results.gif")


def execute(source: Path, folder: Path) -> tuple[nbformat.NotebookNode, float]:
    """Run the notebook that ``source`` is the text of, in ``folder``; returns it with its outputs, and the seconds."""
    notebook = jupytext.read(source)
    notebook.metadata.pop("jupytext", None)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # ids that depend on nothing, so that an unchanged notebook stays unchanged
    code = sum(cell.cell_type == "code" for cell in notebook.cells)
    started = time.perf_counter()
    with tqdm(total=code, desc=source.stem, unit="cell", disable=False) as bar:
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
    return notebook, time.perf_counter() - started


def title_of(notebook: nbformat.NotebookNode) -> str:
    return notebook.cells[0].source.split("\n")[0].lstrip("# ")


def images(notebook: nbformat.NotebookNode) -> list[str]:
    """All pictures among the outputs, as HTML."""
    shown = [
        output.get("data", {}).get("text/html", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    return [html for html in shown if html.startswith("<img ")]


if __name__ == "__main__":
    main()
