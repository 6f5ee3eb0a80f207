"""Threads of an extraction: stages are bounded and end together, lanes encode several batches at a time."""

import dataclasses
import threading
import time

import pytest
import torch
from helpers.extraction import shard_files

from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.engine.threads import Channel, EncodeLanes, Stages, StoppedError, num_lanes_for, timed
from vfz.pipeline.extraction.extract import extract

# --- lanes: several pieces of work at a time, handed on in order ---

TIMEOUT_SECONDS = 30


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def take_all(lanes):
    results = []
    collect(lanes, results)
    return results


def collect(lanes, results):
    while not lanes.is_empty:
        results.extend(lanes.take_done(wait_seconds=TIMEOUT_SECONDS))


def interrupt(lanes, work, *, begun):
    with lanes:
        lanes.put(work)
        assert begun.wait(TIMEOUT_SECONDS)
        raise KeyboardInterrupt


def test_pieces_are_worked_on_at_the_same_time_and_come_in_order(two_threads):
    both = threading.Barrier(2, timeout=TIMEOUT_SECONDS)
    first_may_end = threading.Event()

    def first():
        both.wait()
        assert first_may_end.wait(TIMEOUT_SECONDS)
        return "first"

    def second():
        both.wait()
        return "second"

    with EncodeLanes(2) as lanes:
        lanes.put(first)
        lanes.put(second)
        lanes.put_done("no work")
        assert list(lanes.take_done(wait_seconds=0.1)) == [], "the oldest is not done"
        first_may_end.set()
        assert take_all(lanes) == ["first", "second", "no work"]


def test_what_is_done_is_taken_while_later_work_goes_on(two_threads):
    may_end = threading.Event()
    with EncodeLanes(2) as lanes:
        lanes.put(lambda: "first")
        lanes.put_done("no work")
        lanes.put(lambda: may_end.wait(TIMEOUT_SECONDS))
        found = []
        while len(found) < 2:
            found += lanes.take_done(wait_seconds=TIMEOUT_SECONDS)
        assert found == ["first", "no work"]
        may_end.set()
        assert take_all(lanes) == [True]


def test_pieces_are_few_however_slow_the_oldest_is(two_threads):
    may_end = threading.Event()
    with EncodeLanes(2) as lanes:
        lanes.put(lambda: may_end.wait(TIMEOUT_SECONDS))
        quick = 0
        while lanes.has_room:
            lanes.put(lambda: "quick")
            quick += 1
        assert quick == 3
        assert list(lanes.take_done(wait_seconds=0.1)) == []
        assert not lanes.has_room, "though the others are done"
        may_end.set()
        assert take_all(lanes) == [True, "quick", "quick", "quick"]


def test_an_error_comes_in_its_turn(two_threads):
    def fail():
        raise RuntimeError("of the encoder")

    with EncodeLanes(2) as lanes:
        lanes.put_done("before")
        lanes.put(fail)
        results = []
        with pytest.raises(RuntimeError, match="of the encoder"):
            collect(lanes, results)
        assert results == ["before"]


def test_work_in_hand_is_broken_off_when_an_error_ends_it(two_threads):
    begun, broken_off = threading.Event(), threading.Event()

    def endless():
        begun.set()
        try:
            while True:
                time.sleep(0.01)
        finally:
            broken_off.set()

    with pytest.raises(KeyboardInterrupt):
        interrupt(EncodeLanes(2), endless, begun=begun)
    assert broken_off.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "vfz-encode"]


def test_lanes_share_the_threads_and_give_them_back(two_threads):
    with EncodeLanes(2) as lanes:
        lanes.put(torch.get_num_threads)
        assert take_all(lanes) == [1]
        assert torch.get_num_threads() == 2
    threads = []
    thread = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert threads == [2], "of a thread that begins later"


def test_no_thread_is_left_without_a_lane_where_that_can_be(two_threads):
    encoder = load_encoder("test_vit", random_weights=True)
    lanes = {}
    for num_threads in (1, 2, 3, 6, 8, 10, 16, 64):
        torch.set_num_threads(num_threads)
        lanes[num_threads] = num_lanes_for(encoder)
    assert lanes == {1: 1, 2: 2, 3: 3, 6: 6, 8: 8, 10: 5, 16: 8, 64: 8}


def test_a_compiled_encoder_has_one_lane(two_threads):
    assert num_lanes_for(load_encoder("test_vit", random_weights=True, compile_model=True)) == 1


@pytest.mark.parametrize("encoder", ["demo", "vit_tiny_patch16_224"])
def test_three_lanes_store_the_bytes_of_one(synthetic_options, two_threads, tmp_path, encoder):
    """Also of a CNN whose convolutions depend on the number of threads in their last bits."""
    options = synthetic_options(
        encoder=encoder, random_weights=encoder != "demo", layers=("4",), image_size=96, precision="fp32", out=tmp_path
    )
    torch.set_num_threads(3)
    three = extract(dataclasses.replace(options, name="three"))
    torch.set_num_threads(1)
    one = extract(dataclasses.replace(options, name="one"))
    assert shard_files(three.cache) == shard_files(one.cache)


# --- stages and the channels between them ---


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
