"""The notebooks as readers meet them: in JupyterLab, in Chromium. Screenshots go to build/screenshots/.

All are opened as they are stored. What only a browser shows of a kernel at work is looked at in two that are run here;
that the others run, and to what, is what `make test` finds out with nbval.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="apt-get install --no-install-recommends chromium"),
]

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
# Between them they have every explorer, progress bars, and animations. The explorer of notebook 10 is that of 8.
RUN = ["05_predictions", "08_playground"]

# Seconds that anything may take, so that no machine is too slow for it; only what fails waits that long. It replaces
# Playwright's limits, which are 5 s for what is expected and 30 s for the rest.
LIMIT = 180
sync_api.expect.set_options(timeout=1000 * LIMIT)


class Lab:
    """JupyterLab in a tab of the browser, with one notebook open at a time.

    Args:
        page: the tab, with JupyterLab in it.
        folder: what JupyterLab shows; the notebooks are copied to ``folder/notebooks``.
    """

    def __init__(self, page, folder):
        self.page, self.folder = page, folder
        self.complaints = []  # errors on the console, exceptions, and requests to anywhere else
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def open(self, name):
        """Close what is open, and open a fresh copy of a notebook with the viewer that a double click takes."""
        self.close()
        for suffix in (".ipynb", ".py"):  # in this order: a text older than its outputs is a conflict to Jupytext
            shutil.copy(ROOT / "notebooks" / f"{Path(name).stem}{suffix}", self.folder / "notebooks")
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
        # JupyterLab puts the cells into the page one after the other, when the browser has nothing else to do. Where it
        # always has, they come as slowly as one in three seconds.
        self.page.wait_for_function(
            "() => jupyterapp.shell.currentWidget.content.widgets.every(cell => !cell.isPlaceholder())"
        )

    def close(self):
        """Close the notebook, unsaved, and end its kernel."""
        self.page.evaluate(
            """async () => {
                for (const widget of [...jupyterapp.shell.widgets('main')].filter(widget => widget.sessionContext)) {
                    await widget.sessionContext.shutdown();
                    widget.dispose();
                }
            }"""
        )
        self.complaints.clear()  # of a kernel that ended while the debugger was asking it something

    def execute(self, command, **arguments):
        """Run one of JupyterLab's commands to its end, but no longer than half an hour."""
        self.page.evaluate(
            """async ([name, args]) => {
                const late = new Promise((_, reject) => setTimeout(reject, 1_800_000, `${name} takes too long`));
                await Promise.race([jupyterapp.commands.execute(name, args), late]);
            }""",
            [command, arguments],
        )

    def cells(self):
        """What JupyterLab would save."""
        content = self.page.evaluate("() => jupyterapp.shell.currentWidget.model.toJSON()")
        return nbformat.from_dict(content).cells

    def pictures(self, number):
        """Of each figure in the outputs, once that many are there: alternative text, width, corners' colours (RGBA)."""
        images = self.panel.locator(".jp-OutputArea-output img[src^='data:']")
        loaded = "(images, number) => images.length >= number && images.every(image => image.complete)"
        wait_until(lambda: images.evaluate_all(loaded, number), f"{number} pictures are loaded")
        return images.evaluate_all(
            """images => images.map(image => {
                const [width, height] = [image.naturalWidth, image.naturalHeight];
                if (!width) return {alt: image.alt, width, corners: []};
                const context = new OffscreenCanvas(width, height).getContext('2d');
                context.drawImage(image, 0, 0);
                const corners = [[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]].map(
                    corner => [...context.getImageData(...corner, 1, 1).data]);
                return {alt: image.alt, width, corners};
            })"""
        )

    def screenshots(self, name):
        """The whole notebook from top to bottom, in pieces."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for old in SCREENSHOTS.glob(f"{name}-*.png"):
            old.unlink()
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


class Explorer:
    """One of the notebook's explorers, by the name of the function that made it."""

    def __init__(self, lab, name):
        self.page = lab.page
        self.output = lab.panel.locator(".jp-CodeCell", has_text=f"widgets.{name}_explorer(").locator(
            ".jp-OutputArea-output"
        )
        self.image = self.output.locator(".widget-image")

    def slider(self, label):
        row = self.output.locator(".widget-slider", has=self.page.get_by_text(label, exact=True))
        return row.get_by_role("slider")

    def button(self, label):
        return self.output.get_by_role("button", name=label)

    def dropdown(self, label):
        return self.output.get_by_label(label, exact=True)

    @contextmanager
    def changes(self):
        """What is done inside makes another picture."""
        before = self._picture()
        yield
        wait_until(lambda: self._picture() not in (before, None), "the picture changes")

    def _picture(self):
        """Its pixels; None while it loads."""
        return self.image.evaluate(
            """image => {
                if (!image.complete || !image.naturalWidth) return null;
                const canvas = document.createElement('canvas');
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                canvas.getContext('2d').drawImage(image, 0, 0);
                return canvas.toDataURL();
            }"""
        )


def wait_until(is_true, what):
    end = time.monotonic() + LIMIT
    while not is_true():
        if time.monotonic() > end:
            pytest.fail(f"waited {LIMIT} s in vain until {what}")
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
    # One thread, as in conftest.py.
    environment = os.environ | {name: str(home / name) for name in variables} | {"OMP_NUM_THREADS": "1"}
    (viewer,) = re.findall(r"^jupytext-config (.*)$", (ROOT / "postBuild").read_text(), re.M)
    subprocess.run([Path(sys.executable).parent / "jupytext-config", *viewer.split()], env=environment, check=True)
    # No question about news in the screenshots, and no empty page at their end.
    overrides = home / "JUPYTER_CONFIG_DIR" / "labconfig" / "default_setting_overrides.json"
    settings = json.loads(overrides.read_text())
    settings["@jupyterlab/apputils-extension:notification"] = {"fetchNews": "false"}
    settings["@jupyterlab/notebook-extension:tracker"] = {"scrollPastEnd": False}
    overrides.write_text(json.dumps(settings))

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
        if process.poll() is None:
            kernels = process.children(recursive=True)
            process.terminate()
            process.wait(LIMIT)
            _, alive = psutil.wait_procs(kernels, timeout=LIMIT)
            assert not alive, "kernels outlive JupyterLab"


@pytest.fixture(scope="module")
def lab(server):
    url, folder = server
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=1000 * LIMIT)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(1000 * LIMIT)
        lab = Lab(page, folder)
        complain = lab.complaints.append
        page.on("console", lambda message: message.type == "error" and complain(message.text))
        page.on("pageerror", lambda error: complain(str(error)))
        home = (url.split("lab?")[0], "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(home) or complain(request.url))
        page.goto(url)
        page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
        page.locator("#jupyterlab-splash").wait_for(state="detached")
        yield lab
        lab.close()
        browser.close()


@pytest.fixture(autouse=True)
def nothing_to_complain_of(lab):
    yield
    complaints = lab.complaints.copy()
    lab.complaints.clear()
    assert not complaints, "the browser complained"


@pytest.fixture(scope="module")
def opened(request, lab):
    """(JupyterLab with a notebook, as it is stored or run from top to bottom; the notebook's name).

    One fixture for both, as only one notebook is open at a time.
    """
    name, how = request.param
    lab.open(f"{name}.ipynb")
    if how == "run":
        lab.execute("notebook:run-all-cells")
    return lab, name


def on(*names, how="run"):
    return pytest.mark.parametrize(
        "opened", [pytest.param((name, how), id=f"{name}-{how}") for name in names], indirect=True
    )


def stored(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells


def pictures_in(cells):
    """Alternative texts of the pictures among the outputs."""
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", [])]
    return [image.get("alt") for image in BeautifulSoup("".join(shown), "html.parser").find_all("img")]


def headings_in(cells):
    """What a table of contents lists, from the Markdown."""
    pages = [MarkdownIt().render(cell.source) for cell in cells if cell.cell_type == "markdown"]
    return [heading.get_text() for heading in BeautifulSoup("".join(pages), "html.parser").select("h1, h2, h3, h4")]


@on(*NAMES, how="stored")
def test_untrusted_notebook_shows_its_pictures(opened):
    """As after a download: JupyterLab takes out of the outputs what might do harm, until the notebook has been run."""
    lab, name = opened
    assert not any(cell.metadata.get("trusted") for cell in lab.cells())
    texts = pictures_in(stored(name))
    pictures = lab.pictures(len(texts))
    assert [picture["alt"] for picture in pictures] == texts
    assert all(picture["width"] > 100 for picture in pictures)
    if name not in RUN:
        lab.screenshots(name)


@on(*RUN)
def test_notebook_runs(opened):
    lab, name = opened
    lab.screenshots(name)
    cells = [cell for cell in lab.cells() if cell.cell_type == "code"]
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    number = len(pictures_in(stored(name)))
    pictures = lab.pictures(number)
    assert len(pictures) == number
    assert all(picture["width"] > 100 for picture in pictures)


def saves_both(lab, name):
    """Both of the pair are written, and the text is as it was."""
    pair = [lab.folder / "notebooks" / f"{name}{suffix}" for suffix in (".ipynb", ".py")]
    before = [path.stat().st_mtime_ns for path in pair]
    lab.execute("docmanager:save")
    assert all(path.stat().st_mtime_ns > time_ns for path, time_ns in zip(pair, before, strict=True))
    assert pair[1].read_text() == (ROOT / "notebooks" / f"{name}.py").read_text()
    return True


@on(*NAMES, how="stored")
def test_saving_keeps_the_text(opened):
    assert saves_both(*opened)


@on(*RUN)
def test_saving_after_a_run_keeps_the_text(opened):
    assert saves_both(*opened)


@on("05_predictions", "08_playground")
def test_posterior_explorer(opened):
    lab, name = opened
    explorer = Explorer(lab, "posterior")
    if name == "08_playground":  # which has several runs of several chains
        with explorer.changes():
            explorer.dropdown("run").select_option("temperature 100")
        with explorer.changes():
            explorer.slider("chain").press("ArrowRight")
    with explorer.changes():
        explorer.slider("draw").press("PageUp")
    for view in ("running mean", "aleatoric", "epistemic"):
        with explorer.changes():
            explorer.button(view).click()


@on("08_playground")
def test_sampler_explorer(opened):
    explorer = Explorer(opened[0], "sampler")
    for label in ("step size", "steps"):
        with explorer.changes():
            explorer.slider(label).press("ArrowRight")


@on("08_playground")
def test_prior_explorer(opened):
    explorer = Explorer(opened[0], "prior")
    for label in ("precision", "width"):
        with explorer.changes():
            explorer.slider(label).press("ArrowRight")
    with explorer.changes():
        explorer.dropdown("activation").select_option("ReLU")


@on("08_playground")
def test_data_explorer(opened):
    """Points by mouse and by keys, which are JupyterLab's shortcuts elsewhere."""
    lab, _ = opened
    explorer = Explorer(lab, "data")
    cells = [(cell.cell_type, cell.source) for cell in lab.cells()]
    canvas = explorer.output.locator(".jupyter-matplotlib-canvas-container canvas").last

    def counts(ones, zeros):
        return explorer.output.get_by_text(f"Points: {ones} of class 1, {zeros} of class 0.")

    counts(10, 10).wait_for()
    size = canvas.bounding_box()
    with explorer.changes():
        canvas.click(position={"x": size["width"] / 2, "y": size["height"] / 2})
        counts(11, 10).wait_for()
    with explorer.changes():
        for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "0"):
            lab.page.keyboard.press(key)
        counts(11, 11).wait_for()
    with explorer.changes():
        lab.page.keyboard.press("Delete")
        counts(11, 10).wait_for()
    pad = explorer.output.locator(".jupyter-matplotlib-canvas-container")
    has_focus = "element => element.contains(document.activeElement)"
    assert pad.evaluate(has_focus)
    lab.page.keyboard.press("Escape")
    wait_until(lambda: not pad.evaluate(has_focus), "the canvas lets go of the keys")
    canvas.wait_for()  # it is hidden for a moment
    lab.page.keyboard.press("Tab")
    assert explorer.output.evaluate(has_focus), "Tab leads on to the next control"
    assert not pad.evaluate(has_focus)
    with explorer.changes():
        explorer.button("Undo").click()
        counts(11, 11).wait_for()
    with explorer.changes():
        explorer.button("Resample").click()
    assert [(cell.cell_type, cell.source) for cell in lab.cells()] == cells


def test_text_opens_as_a_notebook(lab):
    lab.open("01_data.py")
    assert [cell.source for cell in lab.cells()] == [cell.source for cell in stored("01_data")]


def test_table_of_contents(lab):
    lab.open("02_model.ipynb")
    lab.page.get_by_role("tab", name="Table of Contents").click()
    expected = headings_in(stored("02_model"))
    assert len(expected) > 5
    # Not compared with each other as they are found at one moment: both lists grow while JupyterLab is at work.
    headings = lab.page.locator(".jp-TableOfContents .jp-tocItem-content")
    sync_api.expect(headings).to_have_text(expected)
    headings.last.wait_for()  # to be seen
    sync_api.expect(lab.panel.locator(":is(h1, h2, h3, h4)")).to_have_text([f"{heading}¶" for heading in expected])


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_figures_stand_on_white_in_every_theme(theme, lab):
    lab.execute("apputils:change-theme", theme=f"JupyterLab {theme}")
    lab.page.locator(f"body[data-jp-theme-name='JupyterLab {theme}']").wait_for(state="attached")
    lab.open("03_hmc.ipynb")
    pictures = lab.pictures(len(pictures_in(stored("03_hmc"))))
    corners = [corner for picture in pictures for corner in picture["corners"]]
    assert corners
    assert all(corner == [255, 255, 255, 255] for corner in corners)
    lab.screenshots(f"{theme.lower()}-03_hmc")
