"""Checks whether a W&B key is configured. The key is never printed or passed on."""

from __future__ import annotations

from analysis.errors import AnalysisError

HOW = "set WANDB_API_KEY or run `wandb login`"


def need() -> None:
    """Raises `AnalysisError` with a remedy if no key is configured."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    try:
        found = wbauth.authenticate_session(host=host, source="analysis", prompt=False, update_session=False)
    except wandb.errors.Error:
        raise AnalysisError(f"the key that is configured for {host} is none that W&B could have given; {HOW}") from None
    if found is None:
        raise AnalysisError(f"no key is configured for {host}; {HOW}, or use --dry-run")
