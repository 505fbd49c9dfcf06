"""Costs: exact where they are computed, by hand-made examples."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from trainer.loop import cost


def test_a_storage_counts_once():
    one = torch.zeros(10, 10)
    assert cost.storage_bytes([one, one[2:], one.T, torch.zeros(3, dtype=torch.float64)]) == 400 + 24
    tied = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    tied[1].weight = tied[0].weight
    assert cost.weight_bytes(tied) == 64


def test_a_sparse_tensor_counts_its_places_and_its_values():
    places, values = torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.ones(3, requires_grad=True)
    assert cost.storage_bytes([torch.sparse_coo_tensor(places, torch.ones(3), (4, 4))]) == 3 * (2 * 8 + 4)
    saved = cost.SavedActivations(nn.Module())
    with saved.counting():
        torch.sparse.mm(torch.sparse_coo_tensor(places, values, (4, 4)), torch.ones(4, 2))
    assert saved.bytes > 0


def test_gradients_and_optimizer_state_are_those_that_are_there():
    model = nn.Linear(8, 8)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.weight])
    assert cost.gradient_bytes(model) == cost.optimizer_bytes(optimizer) == 0
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert cost.gradient_bytes(model) == 256
    assert cost.optimizer_bytes(optimizer) == 2 * 256 + 4
    optimizer.zero_grad()
    assert cost.gradient_bytes(model) == 0


def test_saved_activations_are_counted_once_and_without_parameters():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    saved = cost.SavedActivations(model)
    x = torch.ones(32, 8)
    with saved.counting():
        model(x)
    # The input, and tanh's output: saved by tanh and by the next layer, one storage.
    assert saved.bytes == 4 * (32 * 8 + 32 * 16)


def test_a_frozen_model_saves_only_what_its_trainable_part_needs():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    saved = cost.SavedActivations(model)
    with saved.counting():
        model(torch.ones(32, 8))
    assert saved.bytes == 4 * 32 * 16


def test_counts_of_adapter_and_head():
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    model["backbone"].bias.requires_grad_(False)
    assert cost.trainable_parameters(model, ["head"]) == (16, 10)


def test_the_peak_is_of_the_run_not_of_the_process():
    # In a process of its own, whose peak nothing else moves.
    code = """
import torch
from trainer.loop import cost
large = torch.ones(300 * 2**20, dtype=torch.uint8)
before = cost.peak_rss()
del large
if not cost.reset_peaks(torch.device("cpu")):
    raise SystemExit("not allowed here")
after = cost.peak_rss()
small = torch.ones(50 * 2**20, dtype=torch.uint8)
print(before - after > 250 * 2**20, 40 * 2**20 < cost.peak_rss() - after < 100 * 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"] or done.stderr.strip() == "not allowed here", done.stderr
