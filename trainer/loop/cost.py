"""What a run costs: numbers of parameters, bytes by storage, saved activations, peaks.

Bytes of weights, gradients and optimizer state are sums over storages, each counted once, so
tied weights count once. Saved activations are the storages that autograd keeps between forward
and backward, parameters left out; this is exact on every device. Peaks are measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from variants.core.target_modules import inside
from variants.core.variant import Variant


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes held by `tensors`, each storage counted once."""
    return sum({_key(storage): storage.nbytes() for tensor in tensors for storage in _storages(tensor)}.values())


def _storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """Where a tensor's numbers lie: one place, or two for a sparse one, its places and its values."""
    if callable(local := getattr(tensor, "to_local", None)):  # torch's DTensor, whose module takes a second to import
        tensor = local()  # of a divided weight this process's part
    parts = [tensor._indices(), tensor._values()] if tensor.layout == torch.sparse_coo else [tensor]
    return [part.untyped_storage() for part in parts]


def _key(storage: torch.UntypedStorage) -> int:
    """What tells a storage from others that are alive; a fake one has no address."""
    return storage._cdata


def own_tensors(model: nn.Module) -> list[torch.Tensor]:
    """All parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return storage_bytes(own_tensors(model))


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients that are there now."""
    return storage_bytes(p.grad for p in model.parameters() if p.grad is not None)


def trainable_bytes(model: nn.Module) -> int:
    """Bytes of the gradients that a step would make: one for each trainable parameter."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in the optimizer's state."""
    state = optimizer.state.values()
    return storage_bytes(value for entry in state for value in entry.values() if isinstance(value, torch.Tensor))


def trainable_parameters(model: nn.Module, head: Sequence[str]) -> tuple[int, int]:
    """(adapter, head): trainable parameters outside the head and in it."""
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[inside(name, head)] += parameter.numel()
    return counts[0], counts[1]


def effective_parameters(model: nn.Module, variant: Variant, head: Sequence[str], silent: Sequence[str]) -> int:
    """Parameters outside the head that act: the method's count, or all that are trainable where it has none.

    Those of adapters that no gradient has ever come to are left out. silent: as for `idle_parameters`.
    """
    count = variant.effective_parameters()
    if count is None:
        count, _ = trainable_parameters(model, head)
    return count - idle_parameters(model, variant, silent)[1]


def idle_parameters(model: nn.Module, variant: Variant, silent: Sequence[str]) -> tuple[list[str], int]:
    """Adapters (or parameters, where the method has none) that never act, by name, and how many parameters these are.

    silent: trained parameters, by name, that no gradient has ever come to; the head's are left out. They are counted
    as in `Variant.effective_parameters`.
    """
    if adapters := variant.adapters:
        trained = {name: [n for n, p in a.named_parameters() if p.requires_grad] for name, a in adapters.items()}
        idle = [name for name, own in trained.items() if own and all(f"{name}.{n}" in silent for n in own)]
        return idle, sum(adapters[name].effective_parameters() for name in idle)
    # A method that counts what acts by a mask of its own has not counted these.
    counted = variant.effective_parameters() is None
    return list(silent), sum(model.get_parameter(name).numel() for name in silent) if counted else 0


class SavedActivations:
    """Counts what autograd saves for backward while `counting()` is entered."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._model = model

    @contextlib.contextmanager
    def counting(self, besides: Sequence[torch.Tensor] = ()) -> Iterator[None]:
        """Within it every tensor saved for backward is counted, each storage once.

        Not counted are the model's own tensors and those in `besides`.
        """
        held = [*own_tensors(self._model), *besides]
        own = {_key(storage) for tensor in held for storage in _storages(tensor)}
        kept: dict[int, torch.UntypedStorage] = {}  # held, so that no freed place is used twice

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            for storage in _storages(tensor):
                if _key(storage) not in own:
                    kept[_key(storage)] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        # A divided weight that was put together for the forward pass has been let go, and counts as nothing.
        self.bytes = sum(storage.nbytes() for storage in kept.values())


def reset_peaks(device: torch.device) -> bool:
    """Starts the peaks anew; whether the process's own peak could be reset.

    A process's peak is for life unless the kernel is told otherwise, and in a sweep every
    later run would inherit the largest one.
    """
    reset_cuda_peaks(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def reset_cuda_peaks(device: torch.device) -> None:
    """Starts CUDA's peaks anew, so that training and evaluation are told apart."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_rss() -> int | None:
    """Bytes: the process's peak since `reset_peaks`, or None where the system doesn't say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def cuda_peaks(device: torch.device) -> tuple[int, int] | tuple[None, None]:
    """(allocated, reserved) bytes at the peak since `reset_peaks`; None without CUDA."""
    if device.type != "cuda":
        return None, None
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
