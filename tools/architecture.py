"""The drawing in docs/architecture.md, made from the imports of the library.

    python tools/architecture.py

Rooms are listed from the ground up. A module imports only from its own room and from those before it, as far as imports
at the top of a file go: those inside functions wait until they are needed, and may go anywhere. A test holds the rule,
and the drawing to the imports.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- made by tools/architecture.py -->\n", "<!-- until here -->\n"

# "kernels" stands for the package and all in it, unless a module of it is named elsewhere.
ROOMS = {
    "ground": ["_arviz", "_check", "interrupts", "random", "resources", "workers"],
    "data and network": ["data", "flat", "layers", "network", "structure", "symmetry", "tape"],
    "any gradient": ["gradients.__init__", "gradients.autograd"],
    "prior and likelihood": ["checks", "distributions", "families", "hierarchy", "likelihoods", "links", "priors"],
    "density": ["density", "gradients"],
    "posterior": ["bridges", "model", "posterior"],
    "diagnostics": ["coupling", "diagnostics", "evidence", "mixing", "mixing_native"],
    "kernels": ["adaptation", "kernels"],
    "runs": ["checkpoints", "executors", "facts", "files", "keep", "packing", "run", "starts", "stores"],
    "chain": ["advice", "chain", "stored"],
    "front door": ["batches", "choice", "maxima", "sampling"],
    "uses": ["certificates", "datasets", "estimators", "predict", "predictor", "references", "sbc", "tutorial"],
    "pictures": ["animate", "plots", "widgets"],
}


def modules() -> dict[str, Path]:
    """Name without the package's -> file; a package's own file is ``name.__init__``."""
    library = ROOT / "bnn_utils"
    paths = sorted(library.rglob("*.py"))
    return {".".join(path.relative_to(library).with_suffix("").parts): path for path in paths}


def imports(name: str, known: dict[str, Path]) -> set[str]:
    """Modules of the library that a module's file imports when it is imported itself."""
    found = set()
    for statement in ast.parse(known[name].read_text()).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name.removeprefix("bnn_utils.") for alias in statement.names if "bnn_utils" in alias.name}
        elif isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("bnn_utils"):
            base = (statement.module or "").removeprefix("bnn_utils").removeprefix(".")
            for alias in statement.names:
                found.add(f"{base}.{alias.name}".removeprefix("."))
                found.add(base)
    packages = {f"{one}.__init__" for one in found}
    return {one for one in found | packages if one in known} - {name}


def room_of(name: str) -> str:
    """The room that names the module, or else its package."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        for room, names in ROOMS.items():
            if ".".join(parts[:length]) in names:
                return room
    raise KeyError(f"{name} has no room: give it one in ROOMS of tools/architecture.py")


def edges() -> dict[tuple[str, str], set[str]]:
    """(Room, other room from which it imports) -> the imports, as ``module <- module``."""
    known = modules()
    found: dict[tuple[str, str], set[str]] = {}
    for name in known:
        if name == "__init__":  # the list of public names: it stands outside
            continue
        for other in imports(name, known):
            pair = room_of(name), room_of(other)
            if pair[0] != pair[1]:
                found.setdefault(pair, set()).add(f"{name} <- {other}")
    return found


def against_the_order() -> list[str]:
    """Imports from a room that comes later."""
    place = list(ROOMS).index
    return sorted(line for (room, other), lines in edges().items() if place(other) > place(room) for line in lines)


def drawing() -> str:
    """The rooms in Mermaid. An arrow that follows from two others is left out, and so are arrows to the ground."""
    uses = {room: {other for one, other in edges() if one == room and other != "ground"} for room in ROOMS}

    def reached(room: str) -> set[str]:
        return uses[room].union(*(reached(other) for other in uses[room])) if uses[room] else set()

    lines = ["```mermaid", "flowchart TD"]
    for number, (room, names) in enumerate(ROOMS.items()):
        shown = [name for name in names if "_" not in name[0] and "__init__" not in name]
        lines.append(f'    r{number}["<b>{room}</b><br>{", ".join(shown)}"]')
    place = list(ROOMS).index
    for room, others in uses.items():
        implied = set().union(*(reached(other) for other in others)) if others else set()
        lines += [f"    r{place(other)} --> r{place(room)}" for other in sorted(others - implied, key=place)]
    return "\n".join([*lines, "```", ""])


def page(text: str) -> str:
    """The page with the drawing of today."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + drawing() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
