"""A kernel that refuses the N-th system call of a kind.

A seccomp filter stops each such call of one process and of its children and asks a
supervisor what becomes of it: it is carried out, or fails with an ``errno``. Nothing of what
is tested is replaced, and it does not matter how it comes to make the call.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import platform
import socket
import struct

__all__ = ["CALLS", "CONTROL_FD", "Decider", "can_refuse", "install"]

CONTROL_FD = 200  # what goes through it is never refused
# The calls of x86-64.
CALLS = {
    "accept": (288,),
    "bind": (49,),
    "connect": (42,),
    "eventfd": (290,),
    "fallocate": (285,),
    "fcntl_dup": (72,),
    "fcntl_lock": (72,),
    "flock": (73,),
    "ftruncate": (77,),
    "inotify_add_watch": (254,),
    "inotify_init": (294,),
    "madvise": (28,),
    "mkdir": (83,),
    "mmap": (9,),
    "open": (2, 257),
    "pipe": (293,),
    "recvmsg": (47,),
    "sched_yield": (24,),
    "sendmsg": (46,),
    "socket": (41,),
}

# Of which only those with one of these as their second argument count.
_COMMANDS = {
    "fcntl_dup": (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC),
    "fcntl_lock": (fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW),
}

_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ASK, _ALLOW = 0x7FC00000, 0x7FFF0000
_NUMBER, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _FIFTH_ARGUMENT = 0, 16, 24, 48
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_CONTINUE = 1


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte))
    _fields_ += (("k", ctypes.c_uint32),)  # type: ignore[assignment]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("first", ctypes.POINTER(_Instruction)))


def install(kind: str) -> int:
    """Have this process's calls of a kind decided by whoever reads the descriptor returned."""
    numbers = CALLS[kind]
    code = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_IF_EQUAL, 0, 1, CONTROL_FD)]
    code += [(_RETURN, 0, 0, _ALLOW)]
    if kind == "mmap":  # not the anonymous memory that Python itself asks for
        code += [(_LOAD, 0, 0, _FIFTH_ARGUMENT), (_JUMP_IF_EQUAL, 0, 1, 0xFFFFFFFF)]
        code += [(_RETURN, 0, 0, _ALLOW)]
    code += [(_LOAD, 0, 0, _NUMBER)]
    if kind in _COMMANDS:
        code += [(_JUMP_IF_EQUAL, 1, 0, numbers[0]), (_RETURN, 0, 0, _ALLOW)]
        code += [(_LOAD, 0, 0, _SECOND_ARGUMENT)]
    for number in _COMMANDS.get(kind, numbers):
        code += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ASK)]
    code += [(_RETURN, 0, 0, _ALLOW)]
    instructions = (_Instruction * len(code))(*itertools.starmap(_Instruction, code))
    program = _Program(len(code), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    fd: int = libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(program))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return fd


class Decider:
    """The other end of a filter.

    Attributes:
        fd: readable when a call waits for its decision.
        count: how many calls there were.
    """

    def __init__(self, fd: int, nth: int, refusal: int) -> None:
        self.fd = fd
        self.nth = nth
        self.refusal = refusal
        self.count = 0
        self.is_over = False

    def decide(self) -> None:
        """Let one call go on, or refuse it."""
        asked = bytearray(80)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, asked)
        except OSError:  # ENOENT: whoever asked is gone
            return
        (cookie,) = struct.unpack_from("<Q", asked)
        self.count += not self.is_over
        if not self.is_over and self.count == self.nth:
            answer = struct.pack("<QqiI", cookie, 0, -self.refusal, 0)
        else:
            answer = struct.pack("<QqiI", cookie, 0, 0, _CONTINUE)
        try:
            fcntl.ioctl(self.fd, _ANSWER, bytearray(answer))
        except OSError:
            pass  # ENOENT: killed, or interrupted by a signal, while it waited


def can_refuse() -> bool:
    """Whether this machine lets a process be watched like that."""
    if platform.machine() != "x86_64":
        return False
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                install("mkdir")
                os._exit(0)
            except OSError as exc:
                os._exit(exc.errno or errno.EPERM)
        return os.waitpid(pid, 0)[1] == 0
