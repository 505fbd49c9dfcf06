"""Sources of models and tasks: nothing is vendored, everything is pinned or the user's own.

A task source returns a `TaskData`, a model source a folder. `conf/task/` and `conf/model/` name the source of each task
and model, and its pins:

- `package`, `gguf`: a file inside a pinned distribution of the Python package index,
- `hub`, `hub_rows`: the Hugging Face Hub, or a local mirror with its layout,
- `files`, `folder`: the user's own.

Importing this package is cheap: it never imports torch or transformers, and imports huggingface_hub and gguf's reader
only inside the functions that need them.
"""

from trainer.data.sources.fetch import fetch_model, model_identity
from trainer.data.sources.types import ModelSource, TaskData, TaskSource

__all__ = ["ModelSource", "TaskData", "TaskSource", "fetch_model", "model_identity"]
