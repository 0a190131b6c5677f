"""The lock of the threads of one process, and signal handlers that raise."""

from __future__ import annotations

import dis
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import asgi_ipc
from asgi_ipc._process.mutex import new_mutex

PACKAGE = Path(asgi_ipc.__file__).parent
# What a handler that raises ends as a whole may be as it is.
ENDS = {"_cli", "_operator", "interface", "metrics", "worker"}


class Raised(Exception):
    """What the handler raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """Have SIGALRM raise."""

    def on_alarm(*_: object) -> None:
        raise Raised

    before = signal.signal(signal.SIGALRM, on_alarm)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("depth", [1, 2])
def test_whenever_a_handler_raises_it_is_given_back(alarm: None, depth: int) -> None:
    """At each of 20,000 moments, the lock held once or by the caller as well."""
    mutex = new_mutex()

    def hold(levels: int) -> None:
        with mutex:
            if levels > 1:
                while True:
                    hold(levels - 1)

    def go_on() -> None:
        while True:
            hold(depth)

    for number in range(20_000):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00002 + number % 7 * 0.000003)
            go_on()
        except Raised:
            pass
        assert not mutex._is_owned(), f"left taken by interrupt {number}"


def test_a_handler_may_raise_while_it_is_waited_for(alarm: None) -> None:
    """It is the other thread's then, and stays that."""
    mutex = new_mutex()
    is_held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with mutex:
            is_held.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    with pytest.raises(Raised), mutex:
        raise AssertionError("it was held")
    assert not mutex._is_owned()
    assert not mutex.acquire(blocking=False)
    end.set()
    thread.join()
    with mutex:
        assert mutex._is_owned()


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _escapes(code: CodeType) -> Iterator[int]:
    """Yield the lines of jumps that are in a ``finally`` or ``with``, and not in its table."""
    instructions = list(dis.get_instructions(code))
    at = {instruction.offset: number for number, instruction in enumerate(instructions)}
    table = dis._parse_exception_table(code)  # type: ignore[attr-defined]

    def gives_back(handler: int) -> bool:
        first = [i.opname for i in instructions[at[handler] : at[handler] + 8]]
        return first[0] == "PUSH_EXC_INFO" and "CHECK_EXC_MATCH" not in first

    def handlers(offset: int) -> set[int]:
        covering = {e.target for e in table if e.start <= offset < e.end}
        return {target for target in covering if gives_back(target)}

    for number, jump in enumerate(instructions):
        if jump.opname == "JUMP_BACKWARD":
            before = number - 1
            while instructions[before].opname.startswith(("NOT_TAKEN", "CACHE", "POP_JUMP")):
                before -= 1
            if instructions[before].opname == "CLEANUP_THROW":
                continue  # an `await`'s own
            around = handlers(instructions[before].offset) & handlers(jump.argval)
            if around - handlers(jump.offset):
                yield (jump.positions and jump.positions.lineno) or code.co_firstlineno


def test_what_a_loop_escapes_is_found() -> None:
    """Of these two functions the first would leave something taken, from Python 3.12 on."""
    source = """
def one(lock, numbers):
    with lock:
        for number in numbers:
            if number:
                print(number)
def loop(numbers):
    for number in numbers:
        if number:
            print(number)
def two(lock, numbers):
    with lock:
        loop(numbers)
"""
    codes = [code for code in _codes(compile(source, "x", "exec")) if list(_escapes(code))]
    assert [code.co_name for code in codes] == ["one"][: sys.version_info >= (3, 12)]


def test_no_loop_escapes_what_gives_something_back() -> None:
    """Whatever is raised in a loop of the core passes through the ``finally`` around it."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {code.co_qualname}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in ENDS
        for code in _codes(compile(path.read_text(), str(path), "exec"))
        for line in _escapes(code)
    ]
    assert not found
