"""The notebooks as readers meet them: in JupyterLab, in Chromium. Screenshots go to build/screenshots/."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="apt-get install --no-install-recommends chromium"),
]

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

each_notebook = pytest.mark.parametrize("name", NAMES)


class Lab:
    """JupyterLab in a tab of the browser; ``panel`` is the notebook that was opened last.

    Args:
        page: the tab, with JupyterLab in it.
        folder: what JupyterLab shows; the notebooks are copied to ``folder/notebooks``.
    """

    def __init__(self, page, folder):
        self.page, self.folder = page, folder
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def open(self, name):
        """A fresh copy of a notebook, with the viewer that a double click takes, ready to run."""
        stem = Path(name).stem
        for suffix in (".ipynb", ".py"):  # in this order: a text older than its outputs is a conflict to Jupytext
            shutil.copy(ROOT / "notebooks" / f"{stem}{suffix}", self.folder / "notebooks")
        path = f"notebooks/{name}"
        self.page.evaluate("async path => { await jupyterapp.commands.execute('docmanager:open', {path}); }", path)
        self.page.wait_for_function("path => jupyterapp.shell.currentWidget?.context?.path === path", arg=path)
        assert self.panel.count() == 1, f"{name} was opened, and not as a notebook"
        # Before the kernel answers, running a cell asks which kernel to take.
        self.page.wait_for_function(
            """() => {
                const kernel = jupyterapp.shell.currentWidget.sessionContext.session?.kernel;
                return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
            }"""
        )

    def run_all(self):
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")

    def cells(self):
        """What JupyterLab would save."""
        content = self.page.evaluate("() => jupyterapp.shell.currentWidget.model.toJSON()")
        return nbformat.from_dict(content).cells

    def pictures(self, selector="img"):
        """Source, alternative text, width and height, and the colours of the corners (RGBA) of each in the outputs."""
        images = self.panel.locator(f".jp-OutputArea-output {selector}")
        loaded = "images => images.every(image => image.complete)"
        wait_until(lambda: images.evaluate_all(loaded), "the pictures are loaded")
        return images.evaluate_all(
            """images => images.map(image => {
                const [width, height] = [image.naturalWidth, image.naturalHeight];
                if (!width) return {source: image.src, alt: image.alt, width, height, corners: []};
                const context = new OffscreenCanvas(width, height).getContext('2d');
                context.drawImage(image, 0, 0);
                const corners = [[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]].map(
                    corner => [...context.getImageData(...corner, 1, 1).data]);
                return {source: image.src, alt: image.alt, width, height, corners};
            })"""
        )

    def press(self, label, key):
        """Focus the slider with this label, as one that walks through the page by keyboard does, and press a key."""
        slider = self.panel.locator(".widget-slider").filter(has=self.page.get_by_text(label, exact=True))
        slider.get_by_role("slider").press(key)

    def screenshots(self, name):
        """The whole notebook from top to bottom, in pieces."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        self.page.set_viewport_size(size | {"height": 2400})
        view = self.panel.locator(".jp-WindowedPanel-outer")
        at, end, number = 0, 1, 0
        while at < end:
            number += 1
            at += view.evaluate("(view, at) => { view.scrollTop = at; return view.clientHeight; }", at)
            self.page.wait_for_timeout(200)  # what comes into view is drawn then
            view.screenshot(path=SCREENSHOTS / f"{name}-{number}.png")
            end = view.evaluate("view => view.scrollHeight")
        self.page.set_viewport_size(size)

    def close(self):
        """Close all notebooks, unsaved, and end their kernels."""
        self.page.evaluate(
            """async () => {
                for (const widget of [...jupyterapp.shell.widgets('main')].filter(widget => widget.sessionContext)) {
                    await widget.sessionContext.shutdown();
                    widget.dispose();
                }
            }"""
        )


def wait_until(is_true, what, seconds=30):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"waited {seconds} s in vain until {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(URL with its token, folder) of a JupyterLab of its own, set up as `make lab` and Binder do."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "folder"
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")  # which notebook 3 reads
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "jupytext.toml", folder)
    variables = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "IPYTHONDIR",
    )
    environment = os.environ | {name: str(home / name) for name in variables}
    (viewer,) = re.findall(r"^jupytext-config (.*)$", (ROOT / "postBuild").read_text(), re.M)
    subprocess.run([Path(sys.executable).parent / "jupytext-config", *viewer.split()], env=environment, check=True)

    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    with (home / "log").open("w") as log:
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    runtime = home / "JUPYTER_RUNTIME_DIR"
    try:
        # It takes a port that is free, and writes this page once it listens there.
        wait_until(
            lambda: process.poll() is not None or (runtime / f"jpserver-{process.pid}-open.html").exists(),
            "JupyterLab starts",
        )
        assert process.poll() is None, (home / "log").read_text()
        info = json.loads((runtime / f"jpserver-{process.pid}.json").read_text())
        yield f"{info['url']}lab?token={info['token']}", folder
    finally:
        kernels = process.children(recursive=True)
        process.terminate()
        process.wait(30)
        _, alive = psutil.wait_procs(kernels, timeout=10)
        assert not alive, "kernels outlive JupyterLab"


@pytest.fixture(scope="module")
def tab(server):
    """(page, what it complained about): errors on its console, exceptions, and requests to anywhere else."""
    url, _ = server
    complaints = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        home = (url.split("lab?")[0], "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(home) or complaints.append(request.url))
        page.goto(url)
        page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        page.locator("#jupyterlab-splash").wait_for(state="detached")
        yield page, complaints
        browser.close()


@pytest.fixture
def lab(server, tab):
    page, complaints = tab
    lab = Lab(page, server[1])
    yield lab
    found = complaints.copy()
    lab.close()
    complaints.clear()  # of kernels that ended while the debugger was asking them something
    assert not found, "the browser complained"


def stored(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells


def pictures_in(cells):
    """Alternative texts of the pictures among the outputs."""
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", [])]
    return [image["alt"] for image in BeautifulSoup("".join(shown), "html.parser").find_all("img")]


@each_notebook
def test_untrusted_notebook_shows_its_pictures(name, lab):
    """As after a download: JupyterLab takes out of the outputs what might do harm, until the notebook has been run."""
    lab.open(f"{name}.ipynb")
    assert not any(cell.metadata.get("trusted") for cell in lab.cells())
    pictures = lab.pictures()
    assert [picture["alt"] for picture in pictures] == pictures_in(stored(name))
    assert all(picture["width"] > 100 for picture in pictures)


@each_notebook
def test_notebook_runs(name, lab):
    lab.open(f"{name}.ipynb")
    lab.run_all()
    cells = [cell for cell in lab.cells() if cell.cell_type == "code"]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = lab.pictures("img[src^='data:']")
    assert len(pictures) == len(pictures_in(stored(name)))
    assert all(picture["width"] > 100 for picture in pictures)
    lab.screenshots(name)
    # Saving writes both of the pair, and the text stays as it was.
    lab.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    assert (lab.folder / "notebooks" / f"{name}.py").read_text() == (ROOT / "notebooks" / f"{name}.py").read_text()


def test_slider_moves_the_picture(lab):
    lab.open("05_predictions.ipynb")
    lab.run_all()
    (before,) = lab.pictures(".widget-image")
    lab.press("draw", "ArrowRight")
    wait_until(lambda: lab.pictures(".widget-image") != [before], "the picture changes")


def test_text_opens_as_a_notebook(lab):
    lab.open("01_data.py")
    assert [cell.source for cell in lab.cells()] == [cell.source for cell in stored("01_data")]


def test_table_of_contents(lab):
    lab.open("02_model.ipynb")
    lab.page.get_by_role("tab", name="Table of Contents").click()
    headings = lab.page.locator(".jp-TableOfContents .jp-tocItem-content")
    rendered = lab.panel.locator(":is(h1, h2, h3, h4)").all_text_contents()
    wait_until(lambda: headings.all_inner_texts(), "headings are listed")
    assert headings.all_text_contents() == [heading.rstrip("¶") for heading in rendered]


@pytest.mark.parametrize("theme", THEMES)
def test_figures_stand_on_white_in_every_theme(theme, lab):
    lab.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[theme])
    lab.page.locator(f"body[data-jp-theme-name='{THEMES[theme]}']").wait_for(state="attached")
    lab.open("03_hmc.ipynb")
    corners = [corner for picture in lab.pictures() for corner in picture["corners"]]
    assert corners
    assert all(corner == [255, 255, 255, 255] for corner in corners)
    lab.screenshots(f"03_hmc-{theme}")
