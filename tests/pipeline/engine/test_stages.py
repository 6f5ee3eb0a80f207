"""Threads of a pipeline: bounded, and they end together."""

import threading
import time

import pytest

from vfz.pipeline.engine.threads import Channel, Stages, StoppedError, timed


def test_items_come_through_in_order_and_no_more_wait_than_may():
    most_waiting = 0
    with Stages() as stages:
        channel = Channel(stages, size=2)
        made = []

        def work():
            for number in range(20):
                channel.put(number)
                made.append(number)

        stages.start("work", work)
        taken = []
        while len(taken) < 20:
            time.sleep(0.005)
            most_waiting = max(most_waiting, len(made) - len(taken))
            taken.append(channel.take())
    assert taken == list(range(20))
    assert most_waiting <= 2


def test_nothing_comes_in_time_is_none_and_all_there_is_can_be_taken():
    channel = Channel(Stages(), size=3)
    assert channel.get(timeout_seconds=0.01) is None
    channel.put(1)
    channel.put(2)
    assert channel.take_all() == [1, 2]
    assert channel.take_all() == []


def test_the_first_error_of_a_stage_ends_all_and_is_kept():
    with Stages() as stages:
        never, full = Channel(stages, size=1), Channel(stages, size=1)
        full.put(0)
        ended = []

        def wait(step):
            try:
                step()
            except StoppedError:
                ended.append(step)
                raise

        def fail():
            raise OSError("disk on fire")

        stages.start("reader", lambda: wait(never.take))
        stages.start("writer", lambda: wait(lambda: full.put(1)))
        stages.start("broken", fail)
        with pytest.raises(StoppedError):
            never.take()
        assert str(stages.error()) == "disk on fire"
    assert len(ended) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vfz-")]


def test_leaving_ends_threads_that_wait():
    with Stages() as stages:
        stages.start("reader", Channel(stages, size=1).take)
    assert not [thread for thread in threading.enumerate() if thread.name == "vfz-reader"]


def test_time_is_counted_also_where_work_fails():
    seconds = {}

    def work():
        with timed(seconds, "encode"):
            time.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert seconds["encode"] >= 0.01
