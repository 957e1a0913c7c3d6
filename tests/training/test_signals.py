import os
import signal
import threading

import pytest

from segscse.training.signals import StopRequest, stop_on_signals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_instead_of_ending_the_process(signum):
    request = StopRequest()
    with stop_on_signals(request) as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
    assert request.signum == signum


def test_the_second_sigint_has_its_usual_effect():
    with stop_on_signals(StopRequest()) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_also_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def work():
        with stop_on_signals(StopRequest()):
            assert signal.getsignal(signal.SIGINT) is not before[0]
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        work()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_it_changes_nothing():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with stop_on_signals(StopRequest()) as stop:
            seen.append((stop.signum, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, True)]
