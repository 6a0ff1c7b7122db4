"""The signals that ask a command to save and stop."""

import os
import signal
import stat


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
