"""The site that `make html` makes: whole, with everything public in it, and nothing fetched from anywhere."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

import bnn_utils

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages, parsed: path in the site -> soup. Sphinx itself refuses broken links, and pages that no menu has."""
    folder = tmp_path_factory.mktemp("site")
    arguments = ["--quiet", "--fail-on-warning", "--conf-dir", "docs", "--doctree-dir", str(folder / ".trees")]
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments, ".", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    pages = folder.rglob("*.html")
    return {path.relative_to(folder).as_posix(): BeautifulSoup(path.read_text(), "html.parser") for path in pages}


def test_all_pages_are_there(site):
    sources = [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks").glob("*.md"), *ROOT.glob("benchmarks/*.md")]
    expected = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in sources}
    assert expected <= set(site)
    assert {"index.html", "search.html"} <= set(site)


def test_everything_public_is_in_the_reference(site):
    found = {tag["id"] for name, page in site.items() if "/api/" in name for tag in page.select("dt[id]")}
    assert {f"bnn_utils.{name}" for name in bnn_utils.__all__} <= found


def test_links_lead_somewhere(site):
    """Those of Markdown, of the menu and of the reference; the anchors too, but for those in listings of the code."""
    for name, page in site.items():
        for link in page.find_all("a", href=True):
            target = urlsplit(link["href"])
            if target.scheme:
                assert target.scheme == "https", (name, link)
                continue
            path = (Path("/") / name).parent / unquote(target.path) if target.path else Path("/") / name
            aim = path.resolve().relative_to("/").as_posix()
            assert aim in site, f"{name} links to {link['href']}, which is no page"
            if target.fragment and not name.startswith("_modules/"):
                assert site[aim].find(id=unquote(target.fragment)), f"{name} links to {link['href']}: no such place"


def test_nothing_is_fetched(site):
    """Scripts, styles and pictures are files of the site, so that it is whole without a network."""
    for name, page in site.items():
        sources = [tag[at] for at in ("src", "data") for tag in page.find_all(attrs={at: True})]
        sources += [link["href"] for link in page.find_all("link", href=True)]
        assert not [source for source in sources if re.match(r"(\w+:)?//", source)], name


def test_pictures_have_a_description(site):
    pictures = [picture for page in site.values() for picture in page.find_all("img")]
    assert len(pictures) > 50
    assert all(len(picture["alt"]) > 10 for picture in pictures)
