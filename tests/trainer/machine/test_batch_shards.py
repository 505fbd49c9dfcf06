"""The rows of one process: parts of the batches that a single process would see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.data.rows import EpochSampler, Rows
from trainer.data.tokens import Ragged
from trainer.loop.batches import Collator
from trainer.machine.batch_shards import DistributedSampler, SharedRows, evaluated


def rows(count: int) -> Rows:
    draw = np.random.default_rng(0)
    ends = np.cumsum(draw.integers(1, 9, count))
    return Rows({"input_ids": Ragged(np.ones(ends[-1], np.int32), ends)}, np.arange(count), np.arange(count))


def batches(found: DistributedSampler) -> list[list[tuple[int, int]]]:
    return [list(part) for part in torch.utils.data.DataLoader(found, found.batch, collate_fn=list)]  # type: ignore[arg-type]


def shards(total: int, batch: int, count: int, by_length: bool = True) -> tuple[EpochSampler, list[DistributedSampler]]:
    order = EpochSampler(rows(total), batch * count, by_length, seed=5)
    return order, [DistributedSampler(order, batch, rank, count) for rank in range(count)]


@pytest.mark.parametrize("total", [1, 2, 11, 12, 13, 17, 24, 25])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("by_length", [True, False])
def test_the_parts_of_every_batch_are_the_single_process_s_batch_in_its_order(total, count, by_length):
    order, found = shards(total, 3, count, by_length)
    single = list(order)
    parts = [list(part) for part in found]
    assert [len(part) for part in found] == [len(part) for part in parts]
    assert len({-(-len(part) // 3) for part in found}) == 1, "all make the same steps"
    for number in range(-(-total // (3 * count))):
        together = [pair for part in parts for pair in part[3 * number : 3 * number + 3]]
        shared = single[3 * count * number : 3 * count * (number + 1)]
        assert [place for place, weight in together if weight] == shared
        assert {weight for _, weight in together} <= {0, 1}


def test_process_p_has_rows_p_b_to_p_plus_one_b_of_a_whole_batch():
    order, found = shards(12, 3, 2)
    single = list(order)
    assert [place for place, _ in found[0]] == single[0:3] + single[6:9]
    assert [place for place, _ in found[1]] == single[3:6] + single[9:12]


def test_the_rest_is_divided_evenly_and_who_gets_none_weighs_nothing():
    order, found = shards(8, 2, 3)
    single = list(order)
    assert [list(part)[2:] for part in found] == [[(single[6], 1)], [(single[7], 1)], [(single[6], 0)]]


def test_every_epoch_has_its_own_order_on_all_processes():
    order, found = shards(24, 3, 2)
    before = [list(part) for part in found]
    order.epoch = 1
    after = [list(part) for part in found]
    assert before != after
    assert sorted(place for part in after for place, _ in part) == list(range(24))


def test_a_batch_weighs_what_its_rows_do():
    shared = SharedRows(rows(6))
    collate = Collator(lambda found: {"labels": torch.tensor([int(row["labels"]) for row in found])})
    batch = collate([shared[(4, 1)], shared[(2, 1)]])
    assert batch.labels.tolist() == [4, 2]
    assert batch.weight == 2 and batch.inputs == {}
    assert collate([shared[(3, 0)]]).weight == 0
    assert collate([rows(6)[1]]).weight == 1


@pytest.mark.parametrize(("total", "batch", "count"), [(24, 5, 2), (24, 5, 3), (3, 5, 2), (20, 5, 4), (21, 5, 4)])
def test_evaluation_deals_out_whole_batches_and_all_processes_evaluate_as_many(total, batch, count):
    parts = [evaluated(total, batch, rank, count) for rank in range(count)]
    assert set().union(*parts) == set(range(total))
    single = [list(range(total))[i : i + batch] for i in range(0, total, batch)]
    for part in parts:
        found = [part[i : i + batch] for i in range(0, len(part), batch)]
        assert len(found) == -(-len(single) // count)
        assert all(piece in single for piece in found)
