import csv

import pytest
from rich.console import Console

from segscse.errors import InputError
from segscse.training.callbacks import KEPT, MetricsTable, RunKeeper, RunProgress, format_seconds
from segscse.training.clock import RunClock
from segscse.training.signals import StopRequest


def _rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


class TestMetricsTable:
    def test_rows_have_every_column_and_empty_cells_where_nothing_was_given(self, tmp_path):
        table = MetricsTable(tmp_path / "metrics.csv", ["step", "loss", "dice"])
        table.add(step=1, loss=0.5)
        table.add(step=2, dice=0.25)
        assert (tmp_path / "metrics.csv").read_text() == "step,loss,dice\n1,0.5,\n2,,0.25\n"

    def test_it_continues_from_the_rows_that_a_checkpoint_counted_and_drops_what_came_after(self, tmp_path):
        first = MetricsTable(tmp_path / "metrics.csv", ["step", "loss"])
        for step in (5, 10, 15):
            first.add(step=step, loss=step / 10)
        second = MetricsTable(tmp_path / "metrics.csv", ["step", "loss"])
        second.continue_from(2)
        second.add(step=12, loss=9.0)
        assert [row["step"] for row in _rows(tmp_path / "metrics.csv")] == ["5", "10", "12"]

    def test_without_a_file_it_starts_empty(self, tmp_path):
        table = MetricsTable(tmp_path / "metrics.csv", ["step"])
        table.continue_from(10)
        assert table.rows == []

    def test_an_unknown_column_is_a_defect(self, tmp_path):
        with pytest.raises(ValueError, match="other"):
            MetricsTable(tmp_path / "metrics.csv", ["step"]).add(step=1, other=2)


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
        ema=None,
        checkpoint_every_s=1.0,
        patience=None,
    )
    state = {name: value for name, value in keeper.state_dict().items() if name != missing}
    with pytest.raises(InputError, match=rf"last\.ckpt: is of an earlier version of segscse: it has no '{missing}'"):
        keeper.load_state_dict(state)
