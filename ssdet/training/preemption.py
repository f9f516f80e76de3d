"""Notices that a process must stop: SIGTERM, and signs that the platform gives."""

import ctypes
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

LOOK_AGAIN = 5.0
"""Seconds between two looks at signs."""

Sign = Callable[[], str]
"""Says why training should stop at the next step, or nothing."""


class Preempted(RuntimeError):
    """Training stopped at a checkpoint because it was asked to, and goes on from there."""


@contextmanager
def notices(*signs: Sign) -> Iterator[Sign]:
    """While the block lasts: whether this process got SIGTERM or one of `signs` showed.

    Signs are looked up in a thread, so that one that hangs holds nothing up. A second SIGTERM does
    what it did before the block.
    """
    told: list[str] = []
    ended = threading.Event()
    before: list[Any] = []

    def on_signal(number: int, frame: object) -> None:
        told.append("SIGTERM")
        signal.signal(signal.SIGTERM, before[0])

    def listen() -> None:
        before.append(signal.signal(signal.SIGTERM, on_signal) or signal.SIG_DFL)

    def forget() -> None:
        signal.signal(signal.SIGTERM, before[0])

    _in_main_thread(listen)
    looking = threading.Thread(target=_look, args=(signs, told, ended), daemon=True)
    looking.start()
    try:
        yield lambda: told[0] if told else ""
    finally:
        ended.set()
        _in_main_thread(forget)


def _look(signs: tuple[Sign, ...], told: list[str], ended: threading.Event) -> None:
    while signs and not ended.is_set():
        for sign in signs:
            try:
                if why := sign():
                    told.append(why)
                    return
            except Exception:  # the cluster's head may be away for a while; training goes on
                log.warning("no word on whether to stop; asked again", exc_info=True)
        ended.wait(LOOK_AGAIN)


_actions: deque[Callable[[], None]] = deque()


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _act(unused: int | None) -> int:
    _actions.popleft()()
    return 0


def _in_main_thread(action: Callable[[], None]) -> None:
    """Signals are the main thread's alone, but Ray runs training in another: there it is done
    soon, and in the order of the calls."""
    if threading.current_thread() is threading.main_thread():
        action()
        return
    _actions.append(action)
    if ctypes.pythonapi.Py_AddPendingCall(_act, None):
        _actions.pop()
        raise RuntimeError("the interpreter has no room for a call in the main thread: try again")
