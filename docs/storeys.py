"""The storeys of the package: which room imports which, read from the code.

A room is a folder of the package, or a module that lies beside the folders. It may import from
the rooms below it, never from above: `tests/test_imports.py` checks that, and that no modules
import each other in a circle. `python docs/storeys.py` writes the drawing in docs/design.md anew.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "asgi_ipc"
DESIGN = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- storeys: begin -->\n", "<!-- storeys: end -->\n"
TOP = "asgi_ipc"  # the package's own __init__

Graph = dict[str, set[str]]


def read_modules() -> Graph:
    """Return each module's dotted name below the package, and those that it imports."""
    files = {
        path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")
    }
    names = {_name(parts) for parts in files}
    return {
        _name(parts): _imports(path, parts[:-1], names) - {_name(parts)}
        for parts, path in files.items()
    }


def read_rooms(modules: Graph) -> Graph:
    """Return each room and the other rooms that its modules import."""
    rooms: Graph = {}
    for module, imported in modules.items():
        room = room_of(module)
        rooms.setdefault(room, set()).update({room_of(name) for name in imported} - {room})
    return rooms


def room_of(module: str) -> str:
    """Return the folder of a module, or the module where it lies beside the folders."""
    return module.split(".")[0]


def storeys(rooms: Graph) -> list[list[str]]:
    """Return the rooms, bottom up: each stands on something of the storey just below.

    Raises:
        graphlib.CycleError: rooms that import each other.
    """
    levels: list[list[str]] = []
    sorter = TopologicalSorter(rooms)
    sorter.prepare()
    while sorter.is_active():
        level = sorted(sorter.get_ready())
        levels.append(level)
        sorter.done(*level)
    return levels


def draw(rooms: Graph) -> str:
    """Return the table of the storeys, top down."""
    rows = ["| room | stands on |", "|---|---|"]
    for level in reversed(storeys(rooms)):
        for room in level:
            below = ", ".join(f"`{name}`" for name in sorted(rooms[room])) or "nothing"
            rows.append(f"| `{room}` | {below} |")
        rows.append("| | |")
    return "\n".join(rows[:-1]) + "\n"


def redraw(text: str) -> str:
    """Return the text of the design with the drawing as it is today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{draw(read_rooms(read_modules()))}\n{END}{after}"


def _name(parts: tuple[str, ...]) -> str:
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or TOP


def _imports(path: Path, package: tuple[str, ...], names: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                found.add(whole if whole in names else ".".join(base) or TOP)
    return found


if __name__ == "__main__":
    DESIGN.write_text(redraw(DESIGN.read_text()))
