"""Run the Python of one page as one session: ``python -m tests.docs.session PREFIX PAGE``.

The blocks run in order, in one namespace and one event loop, as if typed in; a module of
``stages`` with the page's name says what is there before. An expression with ``# -> value``
behind it must have that value. The prefix ``mysite`` of the page is replaced by the one given,
and what the session leaves in shared memory is removed.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from asgi_ipc import AsyncIPCChannelLayer

from .blocks import Block, blocks_of, compiled

EXPECTED = re.compile(r"# -> (.+)$")


async def run(page: Path, prefix: str) -> tuple[int, int]:
    """Run a page; return how many statements were run and how many values compared."""
    namespace: dict[str, Any] = {"__name__": page.stem, **_stage(page.stem, prefix)}
    statements = compared = 0
    for block in blocks_of(page, "python"):
        block = block._replace(text=block.text.replace('"mysite"', repr(prefix)))
        lines = block.text.splitlines()
        for statement in compiled(block).body:
            statements += 1
            assert statement.end_lineno is not None
            last = lines[statement.end_lineno - block.line]
            expected = EXPECTED.search(last)
            try:
                value = await _do(statement, block, namespace)
            except Exception as exc:
                exc.add_note(f"in {page}:{statement.lineno}")
                raise
            if expected:
                compared += 1
                wanted = ast.literal_eval(expected.group(1))
                assert value == wanted, f"{page}:{statement.lineno}: {value!r}, not {wanted!r}"
    for name, test in list(namespace.items()):
        if name.startswith("test_"):  # as pytest would, with the fixture that the package brings
            await test(asgi_ipc_layer=AsyncIPCChannelLayer(prefix))
    return statements, compared


def _stage(name: str, prefix: str) -> dict[str, Any]:
    if importlib.util.find_spec(f"tests.docs.stages.{name}") is None:
        return {}
    names: dict[str, Any] = importlib.import_module(f"tests.docs.stages.{name}").names(prefix)
    return names


async def _do(statement: ast.stmt, block: Block, namespace: dict[str, Any]) -> Any:
    """Run one statement; return the value of an expression."""
    tree: ast.Module | ast.Expression = ast.Module([statement], [])
    mode = "exec"
    if isinstance(statement, ast.Expr):
        tree, mode = ast.Expression(statement.value), "eval"
    code = compile(tree, str(block.page), mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, namespace)
    if inspect.CO_COROUTINE & code.co_flags:
        return await result
    return result


def main() -> None:
    """Run the page that the command names."""
    prefix, page = sys.argv[1:]
    try:
        statements, compared = asyncio.run(run(Path(page), prefix))
    finally:
        AsyncIPCChannelLayer(prefix).unlink()
    print(f"{statements} statements, {compared} compared")


if __name__ == "__main__":
    main()
