"""Detection of preemption: SIGTERM, and reasons to stop that the platform reports."""

import ctypes
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""Seconds between two checks of the platform's reasons."""

StopReason = Callable[[], str]
"""Returns the reason to stop training after this step, or ''."""


class Preempted(RuntimeError):
    """Training stopped at a checkpoint on request; another call resumes from it."""


@contextmanager
def watch_preemption(*reasons: StopReason) -> Iterator[StopReason]:
    """Yield a function that returns "SIGTERM" after that signal, else the first of `reasons`.

    `reasons` are called in a thread, so that one that hangs does not delay training. A second
    SIGTERM has the effect that it had before the block.
    """
    stops: list[str] = []
    ended = threading.Event()
    before: list[Any] = []

    def on_signal(number: int, frame: object) -> None:
        stops.append("SIGTERM")
        signal.signal(signal.SIGTERM, before[0])

    def install() -> None:
        before.append(signal.signal(signal.SIGTERM, on_signal) or signal.SIG_DFL)

    def restore() -> None:
        signal.signal(signal.SIGTERM, before[0])

    _in_main_thread(install)
    threading.Thread(target=_poll, args=(reasons, stops, ended), daemon=True).start()
    try:
        yield lambda: stops[0] if stops else ""
    finally:
        ended.set()
        _in_main_thread(restore)


def _poll(reasons: tuple[StopReason, ...], stops: list[str], ended: threading.Event) -> None:
    while reasons and not ended.is_set():
        for reason in reasons:
            try:
                if text := reason():
                    stops.append(text)
                    return
            except Exception:  # the cluster's head may be unreachable for a while; training goes on
                log.warning("cannot check for preemption, trying again", exc_info=True)
        ended.wait(CHECK_SECONDS)


_actions: deque[Callable[[], None]] = deque()


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _run_action(unused: int | None) -> int:
    _actions.popleft()()
    return 0


def _in_main_thread(action: Callable[[], None]) -> None:
    """Run an action in the main thread, soon and in the order of the calls.

    Python allows signal handlers in the main thread alone, but Ray trains in another one.
    """
    if threading.current_thread() is threading.main_thread():
        action()
        return
    _actions.append(action)
    if ctypes.pythonapi.Py_AddPendingCall(_run_action, None):
        _actions.pop()
        raise RuntimeError("the interpreter has no room for a call in the main thread: try again")
