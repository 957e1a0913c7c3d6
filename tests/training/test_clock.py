import math

import pytest

from segscse.training.clock import RunClock, affordable_cases


class FakeTime:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.t = 1000.0

    def __call__(self):
        return self.t


def _run(clock, time, *, step_s, validation_s=0.0, limit=10_000):
    """Run until done; return the progress after every step."""
    clock.start()
    progress = []
    while not clock.done and len(progress) < limit:
        time.t += step_s(clock.step) if callable(step_s) else step_s
        clock.finish_step()
        progress.append(clock.progress)
        if clock.round_done:
            time.t += validation_s(clock) if callable(validation_s) else validation_s
            clock.finish_validation()
    return progress


class TestBySteps:
    def test_progress_is_the_share_of_the_steps(self):
        clock = RunClock(60.0, 8, 2, now=FakeTime())
        assert _run(clock, clock.now, step_s=1.0) == [pytest.approx(k / 8) for k in range(1, 9)]
        assert clock.validations_done == 2

    def test_the_budget_does_not_end_it(self):
        clock = RunClock(1.0, 5, 1, now=FakeTime())
        _run(clock, clock.now, step_s=100.0)
        assert clock.step == 5

    def test_the_time_left_is_unknown_before_the_first_step_and_then_an_estimate(self):
        clock = RunClock(60.0, 10, 2, now=FakeTime())
        clock.start()
        assert math.isnan(clock.seconds_left)
        clock.now.t += 2.0
        clock.finish_step()
        assert clock.seconds_left == pytest.approx(9 * 2.0)


class TestByTime:
    @pytest.mark.parametrize("step_s", [0.3, 1.0, 7.0, lambda step: 0.5 + 0.4 * math.sin(step)])
    @pytest.mark.parametrize("validation_s", [0.0, 1.0])
    def test_ends_at_the_budget_within_one_step_and_the_first_validation(self, step_s, validation_s):
        clock = RunClock(100.0, None, 4, now=FakeTime())
        progress = _run(clock, clock.now, step_s=step_s, validation_s=validation_s)
        longest = 7.0 if step_s == 7.0 else 1.0
        assert 100.0 - 2 * longest <= clock.elapsed_s <= 100.0 + longest + 1e-6
        assert progress[-1] == 1.0
        assert clock.validations_done == 4

    def test_progress_never_falls(self):
        clock = RunClock(50.0, None, 3, now=FakeTime())
        progress = _run(clock, clock.now, step_s=lambda step: 0.2 if step < 60 else 1.5, validation_s=3.0)
        assert progress == sorted(progress)

    def test_time_for_the_validations_to_come_is_set_aside(self):
        without = RunClock(100.0, None, 4, now=FakeTime())
        _run(without, without.now, step_s=0.5)
        clock = RunClock(100.0, None, 4, now=FakeTime())
        _run(clock, clock.now, step_s=0.5, validation_s=1.2)
        assert without.step - clock.step == pytest.approx(4 * 1.2 / 0.5, abs=3)

    @pytest.mark.parametrize(
        ("case_s", "validations", "cases"), [(0.1, 5, 10), (0.25, 2, 10), (0.45, 1, 10), (2.0, 1, 2), (60.0, 1, 1)]
    )
    def test_validations_take_a_twentieth_of_the_budget_or_one_case(self, case_s, validations, cases):
        calls = {f"case_{number}": round(case_s * 60) for number in range(10)}  # a third of a step of 0.05 s each
        clock = RunClock(100.0, None, 5, validation_calls=[calls], now=FakeTime())
        _run(clock, clock.now, step_s=0.05, validation_s=lambda clock: case_s * len(clock.validation_cases()))
        assert clock.validations_done == validations
        assert clock.validated == sorted(calls)[:cases]
        assert clock.elapsed_s == pytest.approx(100, abs=1.0)

    def test_a_validation_whose_only_case_is_large_still_ends_with_the_budget(self):
        clock = RunClock(600.0, None, 5, validation_calls=[{"large": 1440}], now=FakeTime())
        _run(clock, clock.now, step_s=1.0, validation_s=480.0)
        assert clock.elapsed_s == pytest.approx(600, abs=3)

    def test_one_slow_step_does_not_decide_how_many_cases_are_validated(self):
        calls = {f"case_{number}": 30 for number in range(10)}
        clock = RunClock(1000.0, None, 1, validation_calls=[calls], now=FakeTime())
        _run(clock, clock.now, step_s=lambda step: 200.0 if step == 3 else 1.0, validation_s=50.0)
        assert len(clock.validated) == 5

    def test_a_longer_run_goes_on_validating_on_the_same_cases(self):
        calls = {f"case_{number}": 30 for number in range(10)}
        clock = RunClock(200.0, None, 1, validation_calls=[calls], now=FakeTime())
        _run(clock, clock.now, step_s=1.0, validation_s=10.0)
        longer = RunClock(9000.0, None, 3, validation_calls=[dict(list(calls.items())[:5]), calls], now=FakeTime())
        longer.load_state_dict(clock.state_dict())
        assert longer.validation_cases() == clock.validated == ["case_0"]

    def test_a_run_of_an_earlier_version_goes_on_validating_on_all_cases(self):
        calls = {f"case_{number}": 30 for number in range(10)}
        clock = RunClock(100.0, None, 2, validation_calls=[calls], now=FakeTime())
        state = {**clock.state_dict(), "validations_done": 1, "elapsed_s": 50.0, "step": 50}
        del state["validated"]
        clock.load_state_dict(state)
        assert clock.validation_cases() == sorted(calls)

    def test_by_steps_all_cases_are_validated(self):
        calls = {"a": 10**6, "b": 10**6}
        clock = RunClock(1.0, 5, 1, validation_calls=[calls], now=FakeTime())
        _run(clock, clock.now, step_s=1.0)
        assert clock.validated == ["a", "b"]

    def test_first_steps_that_take_the_whole_budget_end_it(self):
        clock = RunClock(3.0, None, 2, now=FakeTime())
        _run(clock, clock.now, step_s=2.0)
        assert clock.step == 2

    def test_a_slow_first_step_does_not_spoil_the_estimate(self):
        clock = RunClock(100.0, None, 2, now=FakeTime())
        clock.start()
        for seconds in (20.0, 1.0, 1.0, 1.0):
            clock.now.t += seconds
            clock.finish_step()
        assert clock.progress == pytest.approx(1 / 78)

    def test_the_time_left_is_what_the_budget_has_left(self):
        clock = RunClock(10.0, None, 2, now=FakeTime())
        clock.start()
        clock.now.t += 4.0
        clock.finish_step()
        assert clock.seconds_left == pytest.approx(6.0)


def test_time_before_the_start_and_before_a_resume_does_not_count():
    clock = RunClock(100.0, None, 2, now=FakeTime())
    clock.now.t += 500.0
    clock.start()
    clock.now.t += 1.0
    clock.finish_step()
    clock.now.t += 500.0
    clock.start()
    clock.now.t += 1.0
    clock.finish_step()
    assert clock.elapsed_s == pytest.approx(2.0)


def test_a_lap_without_a_start_takes_no_time():
    clock = RunClock(10.0, None, 1, now=FakeTime())
    assert clock.lap() == 0.0


@pytest.mark.parametrize("max_steps", [None, 40])
def test_the_state_survives_a_round_trip(max_steps):
    clock = RunClock(50.0, max_steps, 3, now=FakeTime())
    _run(clock, clock.now, step_s=1.0, validation_s=2.0, limit=17)
    other = RunClock(50.0, max_steps, 3, now=FakeTime())
    other.load_state_dict(clock.state_dict())
    assert other.state_dict() == clock.state_dict()
    assert (other.step, other.progress, other.validations_done) == (17, clock.progress, clock.validations_done)


class TestAnotherLengthOnResume:
    def _finished(self, budget_s, max_steps):
        clock = RunClock(budget_s, max_steps, 2, now=FakeTime())
        _run(clock, clock.now, step_s=1.0)
        assert clock.done
        return clock.state_dict()

    def test_more_steps_make_a_finished_run_half_done(self):
        clock = RunClock(60.0, 20, 2, now=FakeTime())
        clock.load_state_dict(self._finished(60.0, 10))
        assert clock.progress == pytest.approx(0.5)
        assert not clock.done

    def test_more_time_makes_a_finished_run_half_done(self):
        clock = RunClock(60.0, None, 2, now=FakeTime())
        clock.load_state_dict(self._finished(30.0, None))
        assert clock.progress == pytest.approx(0.5, abs=0.05)
        _run(clock, clock.now, step_s=1.0)
        assert clock.elapsed_s == pytest.approx(60.0, abs=1.0)

    def test_fewer_steps_than_were_made_end_it(self):
        clock = RunClock(60.0, 5, 2, now=FakeTime())
        clock.load_state_dict(self._finished(60.0, 10))
        assert clock.done


@pytest.mark.parametrize(
    ("parts", "calls", "expected"),
    [
        ([{"a": 4, "b": 4, "c": 4}], 12, ["a", "b", "c"]),
        ([{"a": 4, "b": 4, "c": 4}], 9, ["a", "b"]),
        ([{"a": 9, "b": 4, "c": 4}], 8, ["b", "c"]),
        ([{"a": 9, "b": 7, "c": 8}], 1, ["b"]),
        ([{"a": 9, "d": 2}, {"b": 7, "c": 3}], 5, ["c", "d"]),
        ([{}, {}], 5, []),
    ],
)
def test_a_validation_takes_the_cases_that_fit_in_every_process(parts, calls, expected):
    assert affordable_cases(parts, calls) == expected
