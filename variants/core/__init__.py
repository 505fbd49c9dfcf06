"""What methods share: hooks, adapters, kernels, targets, allocation, state on disk."""
