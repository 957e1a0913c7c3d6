import pytest

from segscse.errors import InputError, Interrupted, SegscseError, choose


def test_an_input_error_is_one_line_with_file_problem_and_remedy():
    error = InputError("is empty", file="a/b.nii", remedy="Copy it again")
    assert str(error) == "a/b.nii: is empty. Copy it again."
    assert (error.file, error.problem, error.remedy) == ("a/b.nii", "is empty", "Copy it again")


def test_file_and_remedy_may_be_left_out():
    error = InputError("fold must be between 0 and 4, got 9")
    assert str(error) == "fold must be between 0 and 4, got 9."
    assert error.file is None


def test_a_question_or_a_full_stop_gets_no_second_stop():
    assert str(InputError("what now?", remedy="Stop.")) == "what now? Stop."


def test_input_errors_are_value_errors_so_that_callers_need_not_know_segscse():
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, SegscseError)


def test_an_interruption_keeps_the_signal_number_for_the_exit_code():
    error = Interrupted(15, "stopped; resume with --resume")
    assert error.signum == 15
    assert str(error) == "stopped; resume with --resume"
    assert not isinstance(error, InputError)


@pytest.mark.parametrize(("got", "remedy"), [("scce", "Did you mean 'scse'?"), ("zzzzzz", "")])
def test_an_unknown_name_lists_what_is_allowed_and_the_closest_match(got, remedy):
    error = choose("attention", got, {"scse": 1, "eca": 2, "none": 3})
    assert error.problem == f"unknown attention {got!r}; allowed: eca, none, scse"
    assert error.remedy == remedy


def test_capitals_do_not_lead_to_another_name():
    names = ("ENCAM", "ECALayer", "eca", "sSE", "se")
    for got, meant in (("ECA", "eca"), ("SE", "se"), ("SSE", "sSE")):
        assert choose("attention", got, names).remedy == f"Did you mean {meant!r}?"
