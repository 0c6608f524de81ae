"""The notebooks as something to read: exercises whose solutions work, headings, links, widths, words."""

import itertools
import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TUTORIAL = [path for path in NOTEBOOKS if path.stem[:2] <= "05"]
GLOSSARY = ROOT / "notebooks" / "glossary.md"
# What JupyterLab shows beside its side panel in a window of 1280 pixels: 848 pixels, 7.8 to a character of code.
LONGEST_LINE = 106
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```\n\n(.+?)\n\n</details>", re.DOTALL)


def each(notebooks):
    return pytest.mark.parametrize("path", notebooks, ids=lambda path: path.stem)


def sources(path, cell_type):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == cell_type]


@each(TUTORIAL)
def test_solutions_of_exercises_work(path, tmp_path, monkeypatch, capsys):
    """In the namespace of a reader who has run the whole notebook; no picture is drawn, so that this is quick."""
    *_, exercises, _ = sources(path, "markdown")
    solutions = [code for code, _ in SOLUTION.findall(exercises)]
    assert len(solutions) == exercises.count("### Exercise: ") == exercises.count("<details>") >= 2

    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # which notebook 3 reads
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    namespace = {}
    for number, source in enumerate(sources(path, "code")):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)
    for number, solution in enumerate(solutions):
        capsys.readouterr()
        exec(compile(solution, f"{path.name}, solution {number + 1}", "exec"), dict(namespace))
        assert capsys.readouterr().out, "a solution prints what it found"
        assert "assert" in solution
        lines = [line for line in solution.splitlines() if line]
        assert 3 <= len(lines) <= 12
        assert max(map(len, lines)) <= 94


def tokens(text):
    """All tokens of a Markdown text in order, inline ones in place of what contains them."""
    for token in MarkdownIt().parse(text):
        yield from token.children or [token]


def headings(path):
    """(level, text) of each heading, as JupyterLab's table of contents lists them."""
    found = []
    for source in sources(path, "markdown"):
        parsed = MarkdownIt().parse(source)
        found += [
            (int(before.tag[1]), inline.content)
            for before, inline in itertools.pairwise(parsed)
            if before.type == "heading_open"
        ]
    return found


def links(text):
    return [token.attrs["href"] for token in tokens(text) if token.type == "link_open"]


def bold(text):
    """What is printed in bold, but for labels such as "Next:"."""
    parsed = list(tokens(text))
    phrases = [after.content for token, after in itertools.pairwise(parsed) if token.type == "strong_open"]
    return [" ".join(phrase.split()) for phrase in phrases if not phrase.endswith(":")]


def glossary():
    """term -> its entry in Markdown."""
    entries = re.findall(r"^- (\*\*.*?)(?=\n- |\Z)", GLOSSARY.read_text(), re.DOTALL | re.MULTILINE)
    return {name: " ".join(entry.split()) for entry in entries for name in bold(entry)[0].split(", ")}


@each(NOTEBOOKS)
def test_headings_are_in_order(path):
    levels, names = zip(*headings(path), strict=True)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(level <= before + 1 for before, level in itertools.pairwise(levels)), "a level was skipped"
    assert len(names) >= 4, "a table of contents"
    assert len(set(names)) == len(names), "a link to a heading finds the first of that name"


@pytest.mark.parametrize("number", range(len(NOTEBOOKS)), ids=lambda number: NOTEBOOKS[number].stem)
def test_links_lead_on(number):
    """From every notebook to the next one, and to the glossary from the first cell."""
    first, *_, last = sources(NOTEBOOKS[number], "markdown")
    assert GLOSSARY.name in links(first)
    following = NOTEBOOKS[(number + 1) % len(NOTEBOOKS)].name
    assert following in links(last), f"what comes after it is {following}"


@each(NOTEBOOKS)
def test_nothing_has_to_be_scrolled_sideways(path):
    """Pictures shrink to the width there is, and printed lines break; code and tables don't."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert max(map(len, cell.source.splitlines())) <= 96
        for output in cell.get("outputs", []):
            table = BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser").table
            if table:
                rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
                # A cell breaks between words, and has 16 pixels of padding, which are two characters.
                columns = itertools.zip_longest(*rows, fillvalue="")
                assert sum(2 + max(map(len, " ".join(texts).split()), default=0) for texts in columns) <= LONGEST_LINE


@each(NOTEBOOKS)
def test_words_in_bold_are_in_the_glossary(path):
    """Bold is kept for them; what is only stressed is in italics."""
    terms = {term.lower() for term in glossary()}
    phrases = {phrase.lower() for source in sources(path, "markdown") for phrase in bold(source)}
    missing = {phrase for phrase in phrases if not {phrase, phrase.removesuffix("s")} & terms}
    assert not missing, f"add these to {GLOSSARY.name}, or use *italics*"


def test_glossary_is_short_and_in_order():
    terms = glossary()
    firsts = [bold(entry)[0].lower() for entry in dict.fromkeys(terms.values())]
    assert firsts == sorted(firsts)
    assert all(len(entry) < 300 for entry in terms.values())


def test_glossary_links_to_where_its_words_are_explained():
    for term, entry in glossary().items():
        (link,) = links(entry)
        text = "\n\n".join(sources(ROOT / "notebooks" / link, "markdown"))
        phrases = {phrase.lower() for phrase in bold(text)}
        assert {term.lower(), f"{term.lower()}s"} & phrases, f"{link} does not print {term!r} in bold"
        assert f"[notebook {int(link[:2])}]" in entry
