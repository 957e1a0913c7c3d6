import math

import pytest

from segscse.training.clock import RunClock


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
            time.t += validation_s() if callable(validation_s) else validation_s
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

    @pytest.mark.parametrize(("validation_s", "expected"), [(1.0, 5), (2.5, 2), (4.9, 1), (60.0, 1), (3600.0, 1)])
    def test_validations_take_no_more_than_a_twentieth_of_the_budget(self, validation_s, expected):
        clock = RunClock(100.0, None, 5, validation_batches=int(6 * validation_s), now=FakeTime())
        _run(clock, clock.now, step_s=0.5, validation_s=lambda: validation_s * clock.validation_share)
        assert clock.validations_done == expected
        assert clock.validation_share == pytest.approx(min(1.0, 5.0 / validation_s))
        assert clock.step >= 95 / 0.5 - 3
        assert clock.elapsed_s == pytest.approx(100, abs=1.5)

    @pytest.mark.parametrize(("share", "expected"), [(None, [0, 1, 2, 3, 4, 5, 6]), (0.5, [0, 1, 3, 5]), (0.01, [0])])
    def test_a_validation_that_takes_a_share_of_the_cases_spreads_them(self, share, expected):
        assert RunClock(100.0, None, 5, validation_share=share).validated(7) == expected

    def test_another_budget_decides_anew_how_many_cases_a_validation_takes(self):
        clock = RunClock(10.0, None, 5, validation_batches=60, now=FakeTime())
        _run(clock, clock.now, step_s=0.5, validation_s=0.5)
        assert clock.validation_share == pytest.approx(0.05)
        longer = RunClock(200.0, None, 5, validation_batches=60, now=FakeTime())
        longer.load_state_dict(clock.state_dict())
        _run(longer, longer.now, step_s=0.5, validation_s=10.0)
        assert longer.validation_share == 1.0

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
