"""What the methods share: the hooks, the adapter, the targets, the state on disk, the contract."""
