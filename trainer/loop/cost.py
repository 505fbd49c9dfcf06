"""Measures the cost of a run: numbers of parameters, bytes of storages, saved activations, peaks.

Bytes of weights, gradients and optimizer state are sums over storages. Each storage counts once, so tied weights count
once. Saved activations are the storages that autograd keeps between forward and backward pass, without parameters; this
is exact on every device. Peaks are measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from variants.core import quantization
from variants.core.target_modules import inside
from variants.core.variant import Variant


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Returns the bytes of the storages of `tensors`, each counted once."""
    return sum({_key(storage): storage.nbytes() for tensor in tensors for storage in _storages(tensor)}.values())


def _storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """Returns a tensor's storages: one, or those of indices and values for a sparse tensor."""
    if callable(local := getattr(tensor, "to_local", None)):  # torch's DTensor, whose import takes a second
        tensor = local()  # this process's shard
    dense = [tensor._indices(), tensor._values()] if tensor.layout == torch.sparse_coo else [tensor]
    return [component.untyped_storage() for component in dense]


def _key(storage: torch.UntypedStorage) -> int:
    """Identifies a storage among those alive; a fake one has no address."""
    return storage._cdata


def own_tensors(model: nn.Module) -> list[torch.Tensor]:
    """Returns all parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def parameters(model: nn.Module) -> int:
    """Returns the number of all parameters, entries of quantised weights included."""
    return sum(p.numel() for p in model.parameters()) + quantization.entries(model)


def weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of all parameters and buffers."""
    return storage_bytes(own_tensors(model))


def gradient_bytes(model: nn.Module) -> int:
    """Returns the bytes of the current gradients."""
    return storage_bytes(p.grad for p in model.parameters() if p.grad is not None)


def trainable_bytes(model: nn.Module) -> int:
    """Returns the bytes of the gradients of a step: one for each trainable parameter."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Returns the bytes of the tensors in the optimizer's state."""
    state = optimizer.state.values()
    return storage_bytes(value for entry in state for value in entry.values() if isinstance(value, torch.Tensor))


def trainable_parameters(model: nn.Module, head: Sequence[str]) -> tuple[int, int]:
    """Returns the numbers of trainable parameters outside the head and in the head."""
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[inside(name, head)] += parameter.numel()
    return counts[0], counts[1]


def effective_parameters(model: nn.Module, variant: Variant, head: Sequence[str], silent: Sequence[str]) -> int:
    """Returns the number of effective parameters outside the head: the method's count, or else all trainable ones.

    Adapters that never had a gradient are excluded. silent: as for `idle_parameters`.
    """
    count = variant.effective_parameters()
    if count is None:
        count, _ = trainable_parameters(model, head)
    return count - idle_parameters(model, variant, silent)[1]


def idle_parameters(model: nn.Module, variant: Variant, silent: Sequence[str]) -> tuple[list[str], int]:
    """Returns the names of adapters (or parameters, for a method without adapters) that never act, and their size.

    silent: names of trained parameters outside the head that never had a gradient. The size is in parameters, counted
    as in `Variant.effective_parameters`.
    """
    if adapters := variant.adapters:
        trained = {name: [n for n, p in a.named_parameters() if p.requires_grad] for name, a in adapters.items()}
        idle = [name for name, names in trained.items() if names and all(f"{name}.{n}" in silent for n in names)]
        return idle, sum(adapters[name].effective_parameters() for name in idle)
    # A method that counts its effective parameters itself has not counted these.
    counted = variant.effective_parameters() is None
    return list(silent), sum(model.get_parameter(name).numel() for name in silent) if counted else 0


class SavedActivations:
    """Counts the bytes that autograd saves for the backward pass while `counting()` is active."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._model = model

    @contextlib.contextmanager
    def counting(self, besides: Sequence[torch.Tensor] = ()) -> Iterator[None]:
        """Counts every tensor saved for the backward pass, each storage once.

        The model's own tensors and those in `besides` are not counted.
        """
        excluded = [*own_tensors(self._model), *besides]
        own = {_key(storage) for tensor in excluded for storage in _storages(tensor)}
        kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is reused

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            for storage in _storages(tensor):
                if _key(storage) not in own:
                    kept[_key(storage)] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        # FSDP has already freed the weights that it gathered for the forward pass, so they count as 0.
        self.bytes = sum(storage.nbytes() for storage in kept.values())


def reset_peaks(device: torch.device) -> bool:
    """Resets the peaks, and returns whether the process's own peak could be reset.

    Linux resets VmHWM only on request; otherwise every later run of a sweep would report the largest run's peak.
    """
    reset_cuda_peaks(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def reset_cuda_peaks(device: torch.device) -> None:
    """Resets CUDA's peaks, so that training and evaluation have separate ones."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_rss() -> int | None:
    """Returns the process's peak in bytes since `reset_peaks`; None if the system doesn't report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def cuda_peaks(device: torch.device) -> tuple[int, int] | tuple[None, None]:
    """Returns the peaks of allocated and reserved bytes since `reset_peaks`; None without CUDA."""
    if device.type != "cuda":
        return None, None
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
