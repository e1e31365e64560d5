"""The pool of ranks: failures come back, hanging ranks are ended, nothing is left running."""

import os
import time

import pytest

from lightning_privacy.testing.ranks import RankError, RankPool


def _who():
    import torch.distributed as dist

    return dist.get_rank(), dist.get_world_size(), os.getpid()


def _fail_on_one():
    import torch.distributed as dist

    if dist.get_rank() == 0:
        raise ValueError("rank 0 has failed")
    dist.barrier()


def _sleep():
    time.sleep(60)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.dist
def test_results_come_in_rank_order_from_the_same_processes(rank_pool):
    first, second = rank_pool.run(_who), rank_pool.run("os:getpid")
    assert [r[:2] for r in first] == [(0, 2), (1, 2)]
    assert [r[2] for r in first] == second


@pytest.mark.dist
def test_environment_of_one_call_is_not_the_nexts(rank_pool):
    rank_pool.run("os:putenv", "LEFT", "1")
    rank_pool.run("builtins:exec", "import os; os.environ['LEFT'] = '1'")
    assert rank_pool.run("os:getenv", "LEFT") == [None, None]


@pytest.mark.dist
def test_failure_and_hanging_end_the_processes_and_the_next_call_starts_new_ones(monkeypatch):
    monkeypatch.setattr("lightning_privacy.testing.ranks.GRACE", 0.5)
    with RankPool(2, timeout=60) as pool:
        old = [r[2] for r in pool.run(_who)]
        with pytest.raises(RankError, match="(?s)_fail_on_one failed.*rank 0:.*ValueError: rank 0 has failed"):
            pool.run(_fail_on_one)
        assert not any(map(_alive, old))
        new = [r[2] for r in pool.run(_who)]
        assert not set(old) & set(new)
        pool.timeout = 1.0
        with pytest.raises(RankError, match="rank 0 did not answer within 1 s"):
            pool.run(_sleep)
        assert not any(map(_alive, new))


def test_function_inside_a_function_is_refused():
    with pytest.raises(ValueError, match="cannot find it by name"):
        RankPool().run(lambda: None)
