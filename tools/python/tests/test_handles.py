"""Calls that are under way beside their rank, messages that are exchanged together, and counts of one's own."""

import os

import numpy as np
import pytest

import shardproof

HERE = os.path.basename(__file__)
DONE = np.array([[1.0, 2.0]])


def passing(fn, **options):
    def taps(rank):
        fn(rank)
        rank.tap("done", DONE)

    report = shardproof.run(taps, expected={"done": DONE}, **options)
    assert report.verdict == "pass", str(report)


def test_every_i_variant_gives_what_its_blocking_call_gives():
    def calls(rank):
        world, me = rank.world, rank.world.rank
        x = np.arange(6.0).reshape(3, 2) + me
        blocking = [world.all_reduce(x.copy()), world.reduce(x.copy(), 1, "max"), world.all_gather(x),
                    world.reduce_scatter(x), world.all_to_all(x), world.broadcast(x.copy(), 2)]
        handles = [world.iall_reduce(x.copy()), world.ireduce(x.copy(), 1, "max"), world.iall_gather(x),
                   world.ireduce_scatter(x), world.iall_to_all(x), world.ibroadcast(x.copy(), 2), world.ibarrier()]
        issued = [handle.wait() for handle in reversed(handles)][::-1]
        assert all(np.array_equal(a, b) for a, b in zip(blocking, issued))

    passing(calls, tp=3, schedules=3)


def test_calls_under_way_need_no_order_of_their_waits():
    def crossed(rank):
        a, b = rank.world.iall_reduce(np.full(2, 1.0)), rank.world.iall_gather(np.array([rank.id]))
        first, second = (a, b) if rank.id == 0 else (b, a)
        first.wait()
        second.wait()
        send, got = rank.world.isend(np.array([rank.id]), 1 - rank.id), np.zeros(1, int)
        assert rank.world.irecv(got, 1 - rank.id).wait() is got and got[0] == 1 - rank.id
        send.wait()

    passing(crossed, tp=2, schedules=5)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_an_input_that_is_written_before_the_wait_is_refused(dtype):
    def writes(rank):
        x = np.ones(4, dtype)
        sum = rank.tp.iall_reduce(x)
        x[1] = 7
        sum.wait()

    report = shardproof.run(writes, tp=2)

    assert report.deadlock_cause.name == "invalid_call"
    assert "its input was written between issue and await, element 1" in report.deadlock


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_output_is_no_number_until_it_is_waited_for(dtype):
    def early(rank):
        out = np.zeros(2, dtype)
        handle = rank.tp.ireduce_scatter(np.ones(4, dtype), out=out)
        assert np.isnan(out).all()
        handle.wait()
        assert out.tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="waited for before"):
            handle.wait()

    passing(early, tp=2)


def test_a_handle_that_is_never_waited_for_is_named_with_its_line():
    def forgets(rank):
        rank.kept = rank.tp.iall_reduce(np.ones(4))

    report = shardproof.run(forgets, tp=2)

    assert "never awaited" in report.deadlock or "dropped" in report.deadlock
    assert f"{HERE}:{forgets.__code__.co_firstlineno + 1}" in report.deadlock


def test_an_issued_call_that_others_never_make_is_a_proven_deadlock():
    def alone(rank):
        if rank.id == 0:
            rank.tp.iall_reduce(np.ones(4)).wait()

    report = shardproof.run(alone, tp=2)

    assert report.stall.kind == "deadlock" and "iall_reduce" in report.deadlock


def test_messages_of_an_exchange_wait_for_no_other():
    def ring(rank):
        world, me = rank.world, rank.world.rank
        after, before = (me + 1) % 3, (me - 1) % 3
        got = world.exchange(sends=[(np.array([me, me]), after)], recvs=[(np.zeros(2, int), before)])
        assert got[0].tolist() == [before, before]

    passing(ring, pp=3, schedules=3)


def test_counts_say_how_many_rows_each_rank_gives_or_gets():
    counts = [1, 0, 2]

    def uneven(rank):
        world, me = rank.world, rank.world.rank
        assert world.all_gather(np.full((counts[me], 2), me), counts).tolist() == [[0, 0], [2, 2], [2, 2]]
        part = world.reduce_scatter(np.arange(6.0).reshape(3, 2), counts=counts)
        assert part.tolist() == [[[0.0, 3.0]], [], [[6.0, 9.0], [12.0, 15.0]]][me]
        with pytest.raises(ValueError, match="one for each of 3 ranks"):
            world.all_gather(np.zeros(1), [1, 1])

    passing(uneven, tp=3)
