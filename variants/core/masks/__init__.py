"""Masks: a source scores entries, a scope says which compete, a schedule when the mask changes."""
