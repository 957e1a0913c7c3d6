import threading

import pytest

from segscse.data.prefetch import AHEAD, prefetched


def test_batches_come_in_order_from_the_first_on():
    batches = prefetched(lambda step: step**2, 3)
    assert [next(batches) for _ in range(5)] == [9, 16, 25, 36, 49]
    batches.close()


def test_the_next_batches_are_made_while_one_is_used_and_no_more_than_that():
    made, caller = [], threading.get_ident()
    enough = threading.Event()

    def make(step):
        assert threading.get_ident() != caller
        made.append(step)
        if step == AHEAD:
            enough.set()
        return step

    batches = prefetched(make, 0)
    assert next(batches) == 0
    assert enough.wait(10)  # 1 and 2 without being asked for
    assert made == list(range(AHEAD + 1))
    batches.close()


def test_an_error_comes_out_where_its_batch_would_have():
    def make(step):
        if step == 2:
            raise ValueError("case 7 is damaged")
        return step

    batches = prefetched(make, 0)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="case 7 is damaged"):
        next(batches)


def test_closing_ends_the_thread():
    batches = prefetched(lambda step: step, 0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patches")]
