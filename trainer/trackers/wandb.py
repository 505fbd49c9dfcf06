"""Weights & Biases, https://docs.wandb.ai. Written for wandb 0.31.

Each run has one W&B run: its id follows from the run's own, so that a resumed run continues its curve. The axis of
every chart is `step`, the optimizer step, because an interruption would shift W&B's own count of calls.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import ConfigError, message
from trainer.trackers import rows
from trainer.trackers.picture import rank_map
from trainer.trackers.tracker import RunInfo, Started, shortened
from variants.core.placement import typed

MODES = ("online", "offline")
Mode = Literal["online", "offline", "disabled"]
FORBIDDEN = r"/\#?%:"  # in a project's name, by W&B
LONGEST, LONGEST_TAG = 128, 64  # characters of a name and of a tag; W&B refuses a run with longer ones
EXIT = {"done": 0, "pruned": 0, "failed": 1}  # a search that stops a run is no failure of it
INTERRUPTED = 255


@dataclass(kw_only=True)
class Wandb:
    """See conf/tracker/wandb.yaml for the fields."""

    project: str = "loratory"
    entity: str | None = None
    mode: str | None = None
    job_type: str = "train"
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    dir: str | None = None
    system_stats: bool = False
    timeout: float = 60.0

    def check(self) -> None:
        if self.mode not in (None, *MODES):
            raise ConfigError(f"tracker.mode: {self.mode!r}, allowed: {', '.join(MODES)}, or null")
        if not self.project or len(self.project) > 128 or set(self.project) & set(FORBIDDEN):
            raise ConfigError(f"tracker.project: {self.project!r}, allowed: up to 128 characters without {FORBIDDEN}")
        if not self.timeout > 0:
            raise ConfigError(f"tracker.timeout: {self.timeout!r}, allowed: a number of seconds > 0")
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("tracker: 'wandb' is not installed: pip install 'loratory[wandb]'")

    def already(self, run: RunInfo, rows: int, url: str | None) -> str | None:
        """Why the run need not, or must not, be uploaded, see `upload.py`."""
        logs = (Path(self.dir) if self.dir else run.folder) / "wandb"
        for kept in logs.glob(f"offline-run-*-{run.key}" if self.dir else "offline-run-*"):
            if any(kept.glob("*.wandb")) and not any(kept.glob("*.synced")):
                return f"was logged offline to {kept}; `{typed('python -m analysis sync')}` uploads it from there"
        if self._mode()[0] != "online":
            return None
        import wandb
        from wandb.apis.public.runs import RunNotFoundError

        api = wandb.Api()
        project = f"{self.entity or api.default_entity}/{self.project}"
        # In a W&B sweep a run has the id that the agent gave it, the last part of its address.
        for key in (run.key, *([url.rpartition("/")[2]] if url and f"/{project}/" in url else [])):
            try:
                shown = api.run(f"{project}/{key}")
            except RunNotFoundError:
                continue
            there = shown.historyLineCount
            if there is not None and there < rows:
                return f"is at {shown.url} with {there} of {rows} rows; delete it there to upload all of it"
            return f"is at {shown.url} already"
        return None

    def start(self, run: RunInfo) -> Started:
        import wandb

        folder = Path(self.dir) if self.dir else run.folder
        logs = folder / "wandb"
        logs.mkdir(parents=True, exist_ok=True)
        if not os.access(logs, os.W_OK | os.X_OK):  # W&B would use a temporary folder
            raise PermissionError(f"{logs} can't be written to")
        os.environ.setdefault("WANDB_DATA_DIR", str(logs))  # of tables before upload; W&B's default: home
        mode, why = self._mode()
        warning, before = None, set(logs.iterdir())
        try:
            self._run = self._init(run, folder, mode)
        except wandb.errors.Error as error:
            if mode != "online":
                raise
            wandb.teardown()
            for empty in set(logs.iterdir()) - before:  # nothing was logged yet
                shutil.rmtree(empty) if empty.is_dir() and not empty.is_symlink() else empty.unlink()
            mode, self._run = "offline", self._init(run, folder, "offline")
            warning = f"logs offline to {logs}, because W&B could not be reached: {message(error)}"
        if lost := [
            n for n, v in run.config.items() if isinstance(v, dict) and v and not hasattr(self._run.config[n], "keys")
        ]:
            warning = (
                f"the W&B sweep's parameter {lost[0]} has replaced all settings of {lost[0]} in W&B's config; "
                f"sweep over its fields, and write {lost[0]}=… in the sweep's command"
            )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        url = self._run.url if mode == "online" else None
        note = f"online, {url}" if mode == "online" else f"{mode}{why}"
        note += f", logs to {logs}" if mode == "offline" else ""
        return Started(self.project, shortened(run.study, LONGEST), self._run.name, note, url, warning)

    def _mode(self) -> tuple[Mode, str]:
        """W&B's mode, and the reason if it is not online."""
        import wandb
        from wandb.sdk.lib import wbauth

        if self.mode:
            return ("online" if self.mode == "online" else "offline"), ""
        settings = wandb.setup().settings
        if settings.mode in ("offline", "dryrun", "disabled"):
            mode: Mode = "disabled" if settings.mode == "disabled" else "offline"
            return mode, " as set by W&B's own settings or WANDB_MODE"
        host = settings.base_url
        try:
            session = wbauth.authenticate_session(host=host, source="loratory", prompt=False, update_session=False)
        except wandb.errors.Error:
            return "offline", ", the configured key is not a valid W&B key"
        return ("online", "") if session else ("offline", ", no key is configured (WANDB_API_KEY or `wandb login`)")

    def _init(self, run: RunInfo, folder: Path, mode: Mode) -> Any:
        import wandb

        return wandb.init(
            project=self.project,
            entity=self.entity,
            id=run.key,
            resume="allow",
            name=shortened(run.name, LONGEST),
            group=shortened(run.study, LONGEST),
            job_type=shortened(self.job_type, LONGEST_TAG),
            tags=self._tags(run),
            notes=self.notes,
            config=run.config,
            dir=str(folder),
            mode=mode,
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=not self.system_stats,
                x_disable_stats=not self.system_stats,
                x_stats_pid=run.pid,
                x_save_requirements=False,
                init_timeout=self.timeout / 2,
            ),
        )

    def _tags(self, run: RunInfo) -> list[str]:
        """Names of variant, task and model and the user's tags, within W&B's limit; the config has the full names."""
        names = [name.strip() for name in (run.variant, run.task, run.model, *self.tags)]
        return list(dict.fromkeys(shortened(name, LONGEST_TAG) for name in names if name))

    def log(self, row: dict[str, Any]) -> None:
        self._run.log({name: value for name, value in row.items() if value is not None})
        self._step = row["step"]

    def finish(self, record: dict[str, Any] | None, ranks: list[dict[str, Any]]) -> None:
        import wandb

        if record is None:
            self._run.finish(INTERRUPTED)
            return
        last = {"step": record.get("steps.done", getattr(self, "_step", 0)), **rows.final(record)}
        if ranks:
            last["ranks/layers"] = wandb.Table(columns=["step", "layer", "rank"], data=rows.by_layer(ranks))
            last["ranks/map"] = wandb.Image(rank_map(ranks), caption="rank of each layer")
        self._run.log(last)
        self._run.summary.update(rows.nested(record))
        self._run.finish(EXIT[record["status"]])
