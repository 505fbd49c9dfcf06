"""Likelihoods of tokens: the same numbers as of all logits, without forming them, where the model allows it."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.objectives import language, other_kinds
from trainer.loop import cost
from trainer.loop.network import Network
from trainer.model import backbone as models
from trainer.model.architecture import Architecture
from trainer.objectives import likelihood
from trainer.objectives.objective import IGNORED
from variants.lora import LoRA

CAUSAL = Architecture("AutoModelForCausalLM")
FAMILIES = {
    "tied embeddings": ("Llama", {}, True),
    "an output layer of its own": ("Llama", {"tie_word_embeddings": False}, True),
    "GPT-2": ("GPT2", {}, True),
    "a cap on logits": ("Gemma2", {"final_logit_softcapping": 0.5}, False),
    "logits divided by a number": ("Granite", {"logits_scaling": 3.0}, False),
    "logits times a number": ("Cohere", {"logit_scale": 0.3}, False),
}


def network_of(folder, family, dtype="float64", autocast=False, **settings) -> Network:
    source = language.make(folder, family, **settings)
    return Network(models.as_loaded(source, CAUSAL, source, dtype), source, torch.device("cpu"), autocast)


def rows(network: Network) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (3, 11), and targets of which some don't count, in one row none."""
    torch.manual_seed(1)
    ids = torch.randint(network.model.config.vocab_size, (3, 11))
    targets = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    targets[0, :5] = targets[1] = IGNORED
    return ids, targets


def of_all_logits(network: Network, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = network(input_ids=ids).logits
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def in_parts(network: Network, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return likelihood.of_tokens(network, CAUSAL, targets, lambda: network(input_ids=ids, use_cache=False))


def adapted(network: Network, **settings) -> Network:
    LoRA(rank=2, **settings).attach(network.model)
    for name, parameter in network.model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(parameter)
    return network


def gradients(network: Network) -> torch.Tensor:
    trained = [p for p in network.model.parameters() if p.requires_grad]
    found = torch.cat([p.grad.flatten() for p in trained])
    network.model.zero_grad()
    return found


@pytest.fixture(autouse=True)
def _many_parts(monkeypatch):
    monkeypatch.setattr(likelihood, "ENTRIES", 1)
    monkeypatch.setattr(likelihood, "FEWEST", 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_those_of_all_logits(name, tmp_path):
    family, settings, parts = FAMILIES[name]
    network = adapted(network_of(tmp_path, family, **settings))
    assert likelihood.in_parts(network, CAUSAL) == parts
    ids, targets = rows(network)
    weights = torch.rand(targets.shape, dtype=torch.float64)  # of the places, for a loss that is no plain sum
    found = []
    for make in (of_all_logits, in_parts):
        losses = make(network, ids, targets)
        (losses * weights).sum().backward()
        found.append((losses.detach(), gradients(network)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert (found[1][0] == 0).equal(targets == IGNORED)


def test_an_adapted_output_layer_is_learned(tmp_path):
    network = adapted(network_of(tmp_path, "Llama", tie_word_embeddings=False), targets=["lm_head"])
    assert not likelihood.in_parts(network, CAUSAL)
    ids, targets = rows(network)
    torch.testing.assert_close(in_parts(network, ids, targets), of_all_logits(network, ids, targets))


def test_a_trained_output_layer_gets_its_gradient(tmp_path):
    network = network_of(tmp_path, "Llama")
    assert not likelihood.in_parts(network, CAUSAL)
    ids, targets = rows(network)
    in_parts(network, ids, targets).sum().backward()
    assert network.model.get_output_embeddings().weight.grad.any()


def test_under_autocast_losses_are_float32_of_logits_in_half_precision(tmp_path):
    network = adapted(network_of(tmp_path, "Llama", "float32", autocast=True))
    ids, targets = rows(network)
    found = in_parts(network, ids, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, of_all_logits(network, ids, targets), rtol=1e-2, atol=1e-2)
    found.sum().backward()
    assert gradients(network).isfinite().all()


def test_rows_of_which_nothing_counts_have_a_gradient_of_zero(tmp_path):
    network = adapted(network_of(tmp_path, "Llama"))
    ids, targets = rows(network)
    in_parts(network, ids, torch.full_like(targets, IGNORED)).sum().backward()
    assert not gradients(network).any()


class Largest(TorchDispatchMode):
    """The most rows of logits that an operation returned; the weight that makes them is as wide."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.vocabulary, self.rows = weight, len(weight), 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        found = operation(*arguments, **(keywords or {}))
        wide = isinstance(found, torch.Tensor) and found.shape[-1:] == (self.vocabulary,)
        if wide and found.data_ptr() != self.weight.data_ptr():
            self.rows = max(self.rows, found.numel() // self.vocabulary)
        return found


def test_no_more_logits_than_of_a_part_are_formed_or_kept(tmp_path):
    network = adapted(network_of(tmp_path, "Llama", vocab_size=1000))
    ids, targets = rows(network)
    assert likelihood.in_parts(network, CAUSAL)
    activations, largest = cost.SavedActivations(network.model), Largest(network.model.lm_head.weight)
    with largest, activations.counting():
        losses = in_parts(network, ids, targets)
    with largest:
        losses.sum().backward()
    assert largest.rows == 2
    parts = activations.bytes
    with activations.counting():
        of_all_logits(network, ids, targets)
    assert activations.bytes - parts > 0.9 * ids.numel() * 1000 * 8


def test_of_texts_made_of_others_the_same(tmp_path):
    architecture = Architecture("AutoModelForSeq2SeqLM")
    for family, parts in (("T5", True), ("Bart", False)):  # BART adds a bias behind its last layer
        source = other_kinds.model("seq2seq", tmp_path / family, family)
        network = Network(
            models.as_loaded(source, architecture, source, "float32").requires_grad_(False),
            *(source, torch.device("cpu"), False),
        )
        assert likelihood.in_parts(network, architecture) == parts, family
        ids, targets = rows(network)
        call = functools.partial(network, input_ids=ids, decoder_input_ids=ids, use_cache=False)
        found = likelihood.of_tokens(network, architecture, targets, call)
        right = F.cross_entropy(call().logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        torch.testing.assert_close(found, right)
