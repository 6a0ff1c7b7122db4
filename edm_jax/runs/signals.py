"""The signals that ask a command to save and stop."""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any


def stop_numbers() -> list[signal.Signals]:
    """SIGINT and SIGTERM, and SIGHUP unless it is ignored, as under `nohup`."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def leave_terminal() -> None:
    """Discards output after SIGHUP, because the terminal is gone.

    Otherwise writing to it would fail in the middle of saving.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        try:
            gone = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        except OSError:
            gone = True
        if gone:
            os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, SIGHUP only once.

    SIGINT and SIGTERM do so even if a shell ignores them, and even in callbacks, where
    Python drops exceptions. Outside the main thread, where handlers cannot be set, it
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # it arrives more than once
            leave_terminal()
        raise KeyboardInterrupt

    def again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # It was raised in a callback, which drops exceptions: send it again.
            timer = threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGTERM])
            timers.append(timer)
            timer.start()
        else:
            hook(unraisable)

    timers: list[threading.Timer] = []
    hook, sys.unraisablehook = sys.unraisablehook, again
    previous = {s: signal.signal(s, interrupt) for s in stop_numbers()}
    try:
        yield
    finally:
        if sys.unraisablehook is again:
            sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()
        for each, handler in previous.items():
            signal.signal(each, handler)
