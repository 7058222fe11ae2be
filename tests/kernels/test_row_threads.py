"""Pieces of rows on threads of their own: all rows, no changed settings, errors and modes passed on."""

import multiprocessing
import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lowrank_ldu.kernels import packed, row_threads
from lowrank_ldu.kernels.row_threads import run_pieces, thread_count

CPU = torch.device("cpu")


@pytest.fixture
def three_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    yield
    torch.set_num_threads(before)


@given(rows=st.integers(0, 200), step=st.integers(1, 70), threads=st.integers(1, 4))
def test_every_row_is_in_one_piece(rows, step, threads):
    seen = torch.zeros(rows, dtype=torch.int64)

    def piece(start, stop, thread):
        assert 0 <= thread < threads
        seen[start:stop] += 1

    run_pieces(piece, rows, step, threads)
    assert bool((seen == 1).all())


@given(tokens=st.integers(1, 100_000), threads=st.integers(1, 128))
def test_rows_at_a_time(tokens, threads):
    step = packed.rows_at_a_time(tokens, threads)
    assert packed._LEAST_ROWS <= step <= packed._ROWS
    assert step == packed._LEAST_ROWS or -(-tokens // step) >= min(threads, tokens // step)


@pytest.mark.usefixtures("three_threads")
def test_settings_of_other_threads_stay():
    counts, fresh = [], []

    def piece(*_):
        counts.append(torch.get_num_threads())

    run_pieces(piece, 8, 1, thread_count(CPU))
    assert set(counts) == {1}
    other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert [torch.get_num_threads(), *fresh] == [3, 3]


def test_pieces_of_one_thread_do_not_meet():
    running, most = [0, 0, 0], [0, 0, 0]

    def piece(_start, _stop, thread):
        running[thread] += 1
        most[thread] = max(most[thread], running[thread])
        torch.ones(100, 100) @ torch.ones(100, 100)
        running[thread] -= 1

    run_pieces(piece, 60, 1, 3)
    assert max(most) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_errors_come_through(threads):
    done = []

    def piece(start, *_):
        if start == 1:
            raise ZeroDivisionError
        done.append(start)

    with pytest.raises(ZeroDivisionError):
        run_pieces(piece, 1000, 1, threads)
    assert len(done) < 1000


def test_modes_of_the_caller():
    x, total = torch.ones(4, requires_grad=True), torch.zeros(4)
    run_pieces(lambda start, stop, _: torch.mul(x[start:stop], 2, out=total[start:stop]), 4, 1, 2)
    assert total.tolist() == [2] * 4
    with torch.inference_mode():
        made = torch.zeros(4)
        run_pieces(lambda start, stop, _: made[start:stop].add_(1), 4, 1, 2)
    assert made.tolist() == [1] * 4


@pytest.mark.usefixtures("three_threads")
def test_where_threads_stay_together(monkeypatch):
    assert thread_count(CPU) == 3
    assert thread_count(torch.device("cuda")) == 1
    with FlopCounterMode(display=False):
        assert thread_count(CPU) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert thread_count(CPU) == 1


def test_an_interpreter_that_ends_starts_no_thread(monkeypatch):
    class Ended:
        def submit(self, *_):
            raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(row_threads, "_threads", Ended)
    seen = []
    run_pieces(lambda start, *_: seen.append(start), 5, 1, 2)
    assert seen == list(range(5))


def _in_a_child(results):
    seen = []
    run_pieces(lambda start, *_: seen.append(start), 5, 1, 2)
    results.put(sorted(seen))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # it is what is tested
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where another test has imported it
def test_a_forked_process_has_threads_of_its_own():
    run_pieces(lambda *_: None, 5, 1, 2)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_in_a_child, args=(results,))
    child.start()
    assert results.get(timeout=60) == list(range(5))
    child.join()


@pytest.mark.usefixtures("three_threads")
def test_the_packed_plan_on_threads():
    """Against float64; 1e-12 is some hundred eps times the 40 terms of a sum."""
    m, n, tokens = 50, 40, 300
    left, right = torch.randn(m, n).double().tril(), torch.randn(n, n).double().triu()
    diagonal, order = torch.randn(n).double(), torch.randperm(m)
    inverse = torch.argsort(order)
    x, gradient = torch.randn(tokens, n).double(), torch.randn(tokens, m).double()
    y, projected = packed.packed_forward(x, None, left[inverse], right, diagonal, order, inverse)
    dx, total = packed.packed_backward(gradient, projected, left[inverse], right, diagonal, order, need_x=True)
    weight = (left[inverse] * diagonal) @ right
    for found, expected in [
        (y, x @ weight.T),
        (dx, gradient @ weight),
        (total, ((x @ right.T) * (gradient @ left[inverse])).sum(0)),
    ]:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
