"""Lanes: several pieces of work at a time, handed on in order; extraction stores the same with one and with more."""

import dataclasses
import threading

import pytest
import torch
from extraction import shard_files

from vfz.pipeline.encode_lanes import EncodeLanes, num_lanes_for
from vfz.pipeline.encoder import load_encoder
from vfz.pipeline.extract import extract

TIMEOUT_SECONDS = 30


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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
        assert list(lanes.take_done()) == [], "the oldest is not done"
        first_may_end.set()
        assert list(lanes.take_all()) == ["first", "second", "no work"]


def test_no_more_than_one_piece_waits_for_a_lane(two_threads):
    """So that the frames in memory are few: whoever brings a further piece waits for the oldest."""
    may_end = threading.Event()
    with EncodeLanes(2) as lanes:
        for _ in range(4):
            lanes.put(lambda: may_end.wait(TIMEOUT_SECONDS))
        threading.Timer(0.2, may_end.set).start()
        assert next(lanes.take_done()) is True


def test_an_error_comes_in_its_turn(two_threads):
    def fail():
        raise RuntimeError("of the encoder")

    with EncodeLanes(2) as lanes:
        lanes.put_done("before")
        lanes.put(fail)
        results = lanes.take_all()
        assert next(results) == "before"
        with pytest.raises(RuntimeError, match="of the encoder"):
            next(results)


def test_lanes_share_the_threads_and_give_them_back(two_threads):
    with EncodeLanes(2) as lanes:
        lanes.put(torch.get_num_threads)
        assert list(lanes.take_all()) == [1]
        assert torch.get_num_threads() == 2
    threads = []
    thread = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert threads == [2], "of a thread that begins later"


def test_a_compiled_encoder_has_one_lane(two_threads):
    def lanes(**options):
        return num_lanes_for(load_encoder("test_vit", random_weights=True, **options))

    assert (lanes(), lanes(compile_model=True)) == (2, 1)


@pytest.mark.parametrize("encoder", ["demo", "vit_tiny_patch16_224"])
def test_two_lanes_store_the_bytes_of_one(synthetic_options, two_threads, tmp_path, encoder):
    options = synthetic_options(encoder=encoder, random_weights=encoder != "demo", precision="fp32", out=tmp_path / "2")
    two = extract(options)
    torch.set_num_threads(1)
    one = extract(dataclasses.replace(options, out=tmp_path / "1"))
    assert shard_files(two.cache) == shard_files(one.cache)
