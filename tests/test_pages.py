"""The pages that `make notebooks` writes: every link leads somewhere, and nothing is fetched from anywhere."""

import re
import runpy
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
TEXTS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.md"))
PAGES = ["index", *TEXTS, *NAMES]

each_page = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """All pages, parsed: name -> soup."""
    folder = tmp_path_factory.mktemp("pages")
    write_pages = runpy.run_path(str(ROOT / "tools" / "notebooks.py"))["write_pages"]
    write_pages(folder, {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS})
    assert sorted(path.stem for path in folder.iterdir()) == sorted(PAGES)
    return {name: BeautifulSoup((folder / f"{name}.html").read_text(), "html.parser") for name in PAGES}


@each_page
def test_links_lead_somewhere(name, pages):
    for link in pages[name].find_all("a", href=True):
        target = urlsplit(link["href"])
        if target.scheme:
            assert target.scheme == "https", link
            continue
        page = target.path.removesuffix(".html") or name
        assert page in pages, f"{name}.html links to {target.path}, which is no page"
        if target.fragment:
            assert pages[page].find(id=unquote(target.fragment)), f"{name}.html links to {link['href']}: no heading"


@each_page
def test_nothing_is_fetched(name, pages):
    """No script, no style sheet, no picture from elsewhere: the page is whole without a network, and trusts nothing."""
    page = pages[name]
    assert not page.find_all(["script", "link", "iframe", "object", "video", "audio"])
    assert all(image["src"].startswith("data:image/") for image in page.find_all("img"))
    styles = "".join(style.string for style in page.find_all("style"))
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:|#)", re.sub(r"/\*.*?\*/", "", styles, flags=re.DOTALL))


@each_page
def test_page_says_what_it_is(name, pages):
    page = pages[name]
    assert page.html["lang"] == "en"
    (heading,) = page.find_all("h1")
    assert page.title.string == heading.get_text().removesuffix("¶")
    pictures = page.find_all("img")
    assert pictures or name in TEXTS
    assert all(len(picture["alt"]) > 10 for picture in pictures)
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids)), "two headings of the same name: a link finds the first"


def test_all_outputs_are_in_the_pages(pages):
    """Pictures and tables; the explorers, which need a kernel, say so."""
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", [])]
        page = pages[path.stem]
        assert len(page.find_all("img")) == sum("<img " in html for html in shown)
        of_text = sum(cell.cell_type == "markdown" and "\n|---" in cell.source for cell in cells)
        assert len(page.find_all("table")) == of_text + sum("<table" in html for html in shown)


def test_pages_are_a_chain(pages):
    assert [link["href"] for link in pages["index"].main.li.parent.find_all("a")] == [
        f"{name}.html" for name in [*NAMES, *TEXTS]
    ]
    for name, following in zip(NAMES, [*NAMES[1:], None], strict=True):
        links = {link["href"] for link in pages[name].find_all("a", rel="next")}
        assert links == ({f"{following}.html"} if following else set())
        if following:
            assert {link["href"] for link in pages[following].find_all("a", rel="prev")} == {f"{name}.html"}
