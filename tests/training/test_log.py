import csv

import pytest

from segscse.errors import InputError
from segscse.training.log import MetricsTable, read_log


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


class TestReadLog:
    def test_returns_what_was_written(self, tmp_path):
        MetricsTable(tmp_path / "metrics.csv", ["step", "loss"]).add(step=3, loss=float("nan"))
        assert read_log(tmp_path / "metrics.csv", ("step",)) == [{"step": "3", "loss": "nan"}]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "no column 'step'"),
            (b"steps,loss\n1,2\n", "no column 'step'"),
            (b"step,loss\n1\n", "line 2 has another number of values"),
            (b"step,loss\n1,2,3\n", "line 2 has another number of values"),
            (b"step,loss\n1,2\none,2\n", "line 3 has 'one' where a number belongs"),
            (b"step,loss\n1,=cmd()\n", "line 2 has '=cmd\\(\\)'"),
            (b'step,loss\n1,"2\n', "unexpected end of data"),
            (b"\xff\xfe\x00", "can't decode"),
            (b"step,loss\n1," + b"9" * 200_000 + b"\n", "field larger than field limit"),
        ],
        ids=["empty", "other", "short", "long", "word", "formula", "quote", "binary", "huge"],
    )
    def test_refuses_anything_else_in_one_line(self, content, problem, tmp_path):
        (tmp_path / "metrics.csv").write_bytes(content)
        with pytest.raises(InputError, match=rf"metrics\.csv: is not the log of a run .*{problem}") as caught:
            read_log(tmp_path / "metrics.csv", ("step", "loss"))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        table = MetricsTable(tmp_path / "metrics.csv", ["step", "loss"])
        with pytest.raises(InputError, match="is not the log of a run"):
            table.continue_from(1)

    def test_another_log_is_not_continued(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("step,loss,other\n1,2,3\n")
        with pytest.raises(InputError, match="it has the columns step, loss, other"):
            MetricsTable(tmp_path / "metrics.csv", ["step", "loss"]).continue_from(1)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"metrics\.csv: cannot be read"):
            read_log(tmp_path / "metrics.csv", ("step",))
