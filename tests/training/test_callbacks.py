import pytest
from rich.console import Console

from segscse.errors import InputError
from segscse.training.callbacks import KEPT, RunKeeper, RunProgress, format_seconds
from segscse.training.clock import RunClock
from segscse.training.log import MetricsTable
from segscse.training.signals import StopRequest


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.6, "0:10"), (75, "1:15"), (3599.7, "1:00:00"), (7384, "2:03:04"), (float("nan"), "-:--")],
)
def test_seconds_are_shown_as_a_clock_does(seconds, text):
    assert format_seconds(seconds) == text


def test_an_exception_removes_the_bar():
    progress = RunProgress(RunClock(10.0, None, 1), Console(force_terminal=True, quiet=True))
    progress.on_train_start(None, None)
    assert progress.bar.live.is_started
    progress.on_exception(None, None, RuntimeError())
    assert not progress.bar.live.is_started


@pytest.mark.parametrize("missing", KEPT)
def test_a_checkpoint_of_an_earlier_version_is_named(tmp_path, missing):
    keeper = RunKeeper(
        tmp_path,
        RunClock(10.0, None, 1),
        MetricsTable(tmp_path / "metrics.csv", ["step"]),
        StopRequest(),
        None,
        average=None,
        checkpoint_every_s=1.0,
        patience=None,
    )
    state = {name: value for name, value in keeper.state_dict().items() if name != missing}
    with pytest.raises(InputError, match=rf"last\.ckpt: is of an earlier version of segscse: it has no '{missing}'"):
        keeper.load_state_dict(state)
