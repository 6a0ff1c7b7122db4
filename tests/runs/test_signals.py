"""Signals end a command whenever they arrive."""

import signal
import time

import pytest

from edm_jax.runs import signals


class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_meets_a_callback_ends_the_command_all_the_same():
    with pytest.raises(KeyboardInterrupt), signals.interruptible():
        Dropped()  # Python lets nothing out of here
        time.sleep(5)
        pytest.fail("it slept to the end")


def test_a_signal_after_the_end_is_nobodys():
    with signals.interruptible():
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
