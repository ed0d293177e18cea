from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etd_ds import data
from etd_ds.contract import errors
from etd_ds.data import stream


def _seen(batches: list[data.Batch]) -> Counter[bytes]:
    """Segments of batches, whatever their order."""
    return Counter(part.numpy().tobytes() for packed in batches for part in packed.ids_T.split(packed.lengths))


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    order = stream.shuffled(np.arange(n), n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert stream.shuffled(np.array([n // 2]), n, seed, epoch)[0] == order[n // 2]


def test_orders_differ_between_epochs_and_seeds_and_look_random() -> None:
    n = 5000
    orders = [stream.shuffled(np.arange(n), n, seed, epoch) for seed in range(6) for epoch in range(6)]
    for index, order in enumerate(orders):
        # The correlation with file order, and with any other order, is normal with deviation 1/sqrt(n).
        others = [np.arange(n), *orders[:index]]
        assert max(abs(np.corrcoef(order, other)[0, 1]) for other in others) < 5 / n**0.5
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / n**0.5


def test_every_row_comes_exactly_once_an_epoch(make) -> None:
    rows = make().train
    batches = data.Stream(rows, batch_size=7, seed=3)
    seen = np.concatenate([batches.rows(step) for step in range(-(-3 * len(rows) // 7))])
    for epoch in range(3):
        assert sorted(seen[epoch * len(rows) : (epoch + 1) * len(rows)].tolist()) == list(range(len(rows)))


@pytest.mark.parametrize("layout", ["packed", "pairs"])
@pytest.mark.parametrize(("world_size", "micro"), [(1, 1), (1, 8), (2, 4), (2, 12), (4, 2), (8, 3), (24, 1)])
def test_a_step_holds_the_same_tokens_for_any_world_size_and_micro_batch(make, layout, world_size, micro) -> None:
    rows = make(layout=layout).train
    plain = data.Stream(rows, batch_size=24, seed=5)
    for step in (0, 1, 17, 1000):
        whole = plain.micro_batches(step, 24)
        ranks = [
            data.Stream(rows, batch_size=24, seed=5, rank=rank, world_size=world_size).micro_batches(step, micro)
            for rank in range(world_size)
        ]
        assert {len(batches) for batches in ranks} == {24 // world_size // micro}
        parts = [packed for batches in ranks for packed in batches]
        assert _seen(parts) == _seen(whole)
        totals = plain.totals(step)
        assert totals.tokens == sum(packed.ids_T.numel() for packed in parts)
        assert totals.pairs == sum(length**2 for packed in parts for length in packed.lengths)
        assert totals.rows == sum(packed.rows for packed in parts) == 24


def test_position_is_the_step_alone(make) -> None:
    rows = make().train
    one = data.Stream(rows, batch_size=8, seed=5)
    straight = [one.micro_batches(step, 8)[0].ids_T.tolist() for step in range(6)]
    resumed = data.Stream(rows, batch_size=8, seed=5)
    assert [resumed.micro_batches(step, 8)[0].ids_T.tolist() for step in (4, 5)] == straight[4:]


def test_ranks_carry_equal_work(make) -> None:
    rows = make(layout="pairs", seq_length=128).train
    for step in range(20):
        loads = [
            sum(packed.ids_T.numel() for packed in batches)
            for batches in (
                data.Stream(rows, batch_size=32, seed=1, rank=rank, world_size=4).micro_batches(step, 4)
                for rank in range(4)
            )
        ]
        assert max(loads) <= 1.05 * np.mean(loads)


@given(
    costs=st.lists(st.floats(1, 1000), min_size=1, max_size=60),
    bins=st.integers(1, 16),
)
def test_dealing_is_fair(costs: list[float], bins: int) -> None:
    bins = min(bins, len(costs))
    dealt = stream.deal(np.array(costs), bins)
    assert sorted(index for part in dealt for index in part) == list(range(len(costs)))
    assert all(dealt)
    loads = [sum(costs[index] for index in part) for part in dealt]
    # The bound of Graham's rule: no bin is above the mean by more than one item.
    assert max(loads) <= sum(costs) / bins + max(costs) + 1e-6


def test_working_ahead_changes_no_batch(make) -> None:
    rows = make().train
    plain, ahead = data.Stream(rows, batch_size=8, seed=2), data.Ahead(data.Stream(rows, batch_size=8, seed=2))
    for step in (0, 1, 2, 3, 50, 51, 7, 7):
        wanted, found = plain.micro_batches(step, 4), ahead.micro_batches(step, 4)
        assert [one.ids_T.tolist() for one in found] == [one.ids_T.tolist() for one in wanted]
        assert ahead.totals(step) == plain.totals(step)
    assert 0 <= ahead.waiting_share <= 1
    ahead.close()


def test_an_error_in_the_thread_comes_out_where_the_step_is_asked_for(make) -> None:
    corpus = make()
    path = next(corpus.folder.glob("*.tokens"))
    path.write_bytes(path.read_bytes()[:200] + bytes(path.stat().st_size - 200))
    ahead = data.Ahead(data.Stream(corpus.train, batch_size=8, seed=2))
    with pytest.raises(errors.CorpusError, match="changed after it was prepared"):
        ahead.micro_batches(0, 8)
    ahead.close()


def test_a_rank_reads_its_own_rows_only(make) -> None:
    rows = make().train
    step, world = 3, 4
    counted = _Counting(rows)
    data.Stream(counted, batch_size=24, seed=5, rank=1, world_size=world).micro_batches(step, 3)
    everything = set(data.Stream(rows, batch_size=24, seed=5).rows(step).tolist())
    assert set(counted.read) < everything
    assert len(counted.read) < 1.5 * 24 / world


class _Counting:
    def __init__(self, rows: data.Rows) -> None:
        self._rows, self.read, self.pad_id, self.sizes = rows, [], rows.pad_id, rows.sizes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> data.Row:
        self.read.append(index)
        return self._rows[index]
