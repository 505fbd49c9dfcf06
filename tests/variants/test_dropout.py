"""Dropout's bits: each entry alone with its probability, all of them decided by torch's seed."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from variants.core.kernels.dropout import bits, draw, drop


def keep_mask(x: torch.Tensor, dropout: float) -> tuple[torch.Tensor, float]:
    """Which entries dropout keeps, and what they are scaled by."""
    source, least, up = draw(x, dropout)
    return bits(source, x.shape) >= least, up


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.03])
def test_dropout_keeps_each_entry_alone_with_its_probability(dropout: float) -> None:
    x = torch.empty(1 << 20)
    keep, scale = keep_mask(x, dropout)
    count = int(keep.sum())
    assert stats.binomtest(count, keep.numel(), 1 - dropout).pvalue > 1e-3
    assert scale == pytest.approx(1 / (1 - dropout), rel=2e-4)
    # Neighbours, whose bits come out of one draw, know nothing of each other.
    for distance in (1, 2, 3, 4):
        table = torch.zeros(2, 2)
        first, second = keep[:-distance:8].long(), keep[distance::8].long()
        table.index_put_((first[: len(second)], second[: len(first)]), torch.tensor(1.0), accumulate=True)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    runs = torch.diff(torch.nonzero(~keep).flatten())  # gaps between dropped entries are geometric
    observed = torch.bincount(runs[runs <= 20], minlength=21)[1:].double()
    expected = torch.tensor([dropout * (1 - dropout) ** (k - 1) for k in range(1, 21)]).double() * len(runs)
    assert stats.chisquare(observed.numpy(), expected.numpy() * float(observed.sum() / expected.sum())).pvalue > 1e-3


def test_dropout_follows_torchs_seed() -> None:
    x = torch.empty(1001)
    torch.manual_seed(3)
    first = keep_mask(x, 0.2)[0]
    torch.manual_seed(3)
    assert torch.equal(first, keep_mask(x, 0.2)[0]) and not torch.equal(first, keep_mask(x, 0.2)[0])


@pytest.mark.parametrize("shape", [(1001,), (3, 5, 7), (0, 4), ()])
def test_a_seed_stands_for_the_bits(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    torch.manual_seed(3)
    whole, *rest = draw(x, 0.2)
    torch.manual_seed(3)
    seed, *same = draw(x, 0.2, seed_alone=True)
    assert whole.shape == x.shape and whole.dtype == torch.int16 and rest == same
    assert seed.numel() == 2 and torch.equal(bits(seed, x.shape), whole)


def test_in_a_tensor_without_data_the_bits_have_their_size() -> None:
    with FakeTensorMode():
        x = torch.empty(4, 6)
        for seed_alone, size in ((False, 24), (True, 2)):
            source, *_ = draw(x, 0.2, seed_alone=seed_alone)
            assert source.numel() == size and bits(source, x.shape).shape == x.shape


def test_while_it_is_compiled_torch_draws_them() -> None:
    def kept(x: torch.Tensor) -> torch.Tensor:
        source, least, _ = draw(x, 0.5)
        return bits(source, x.shape) >= least

    explained = torch._dynamo.explain(kept)(torch.empty(1000))
    assert explained.graph_break_count == 0


@pytest.mark.parametrize("seed_alone", [False, True])
def test_what_is_dropped_is_zero_and_the_rest_is_scaled_up(seed_alone: bool) -> None:
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    drawn = draw(x, 0.3, seed_alone=seed_alone)
    keep = bits(drawn.source, x.shape) >= drawn.least
    assert torch.equal(drop(x, drawn), torch.where(keep, x * drawn.up, 0.0))
    assert torch.autograd.gradcheck(lambda x: drop(x, drawn), (x,))


def test_to_drop_saves_the_source_alone() -> None:
    x = torch.randn(8, 4, requires_grad=True)
    drawn, kept = draw(x, 0.3), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        drop(x, drawn)
    assert [t.data_ptr() for t in kept] == [drawn.source.data_ptr()]
