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
    """SIGINT and SIGTERM; SIGHUP too, unless it is ignored, as `nohup` has it."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def leave_terminal() -> None:
    """After SIGHUP: has what is printed go nowhere, as the terminal is gone.

    Writing to it would fail, in the middle of saving.
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
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, the last of them once.

    The first two do so even if a shell had them ignored, and in callbacks too, where
    Python drops what is raised. Outside the main thread, which alone may say so, nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # it comes more than once
            leave_terminal()
        raise KeyboardInterrupt

    def again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # It came in a callback, which lets nothing through.
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
