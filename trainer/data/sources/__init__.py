"""Where models and texts come from: nothing is vendored, everything is pinned or the user's own.

A task source gives a `TaskData`, a model source a folder. Which source a task or a model
has, and its pins, stand in `conf/task/` and `conf/model/`:

- `package`: a file inside a pinned distribution of the Python package index,
- `hub`: the Hugging Face Hub, or a local mirror with its layout,
- `files`, `folder`: the user's own.

Importing this package is cheap: torch and transformers are never imported, huggingface_hub
only inside the functions that need it.
"""

from trainer.data.sources.fetch import fetch_model, model_identity
from trainer.data.sources.types import ModelSource, TaskData, TaskSource

__all__ = ["ModelSource", "TaskData", "TaskSource", "fetch_model", "model_identity"]
