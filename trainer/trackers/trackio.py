"""trackio, https://github.com/gradio-app/trackio: a dashboard on this machine, without an account or a network.

One SQLite file for each project in `dir`. Written for trackio 0.43.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.trackers import rows
from trainer.trackers.picture import rank_map
from trainer.trackers.tracker import RunInfo, Started, shortened
from variants.core import placement

# Any of these would send the run to another place.
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID", "TRACKIO_WEBHOOK_URL")

LONGEST = 128  # characters of a run's name and bytes of a project's, which trackio uses as file names


def accepted(project: str) -> str:
    """A name that trackio accepts for a project; it reserves some for its own files."""
    from trackio.sqlite_storage import SQLiteStorage

    if len(project.encode()) > LONGEST:
        project = shortened(project, LONGEST // 4)  # a character has up to four bytes
    try:
        SQLiteStorage.validate_project_name(project)
    except ValueError:
        return f"project-{project}-"
    return project


@dataclass(kw_only=True)
class Trackio:
    """See conf/tracker/trackio.yaml for the fields."""

    project: str
    dir: str
    timeout: float = 60.0

    def check(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"tracker.timeout: {self.timeout!r}, allowed: a number of seconds > 0")
        if not self.project:
            raise ConfigError(f"tracker.project: {self.project!r}, allowed: a name")
        if importlib.util.find_spec("trackio") is None:
            raise ConfigError("tracker: 'trackio' is not installed: pip install 'loratory[trackio]'")

    def already(self, run: RunInfo, rows: int, url: str | None) -> str | None:
        """Why the run need not be uploaded, see `upload.py`."""
        if not Path(self.dir).is_dir():
            return None
        self._stay_here()
        from trackio.sqlite_storage import SQLiteStorage

        project, name = accepted(self.project), shortened(run.name, LONGEST)
        kept = int(SQLiteStorage.get_log_count(project, run=name))
        if kept and kept < rows:
            return f"is in {self.dir} with {kept} of {rows} rows; delete it there to upload all of it"
        return f"is in {self.dir} already" if kept else None

    def _stay_here(self) -> None:
        """Makes trackio's store that of `dir`, before trackio is imported."""
        for name in ELSEWHERE:
            os.environ.pop(name, None)
        os.environ |= {"TRACKIO_DIR": str(Path(self.dir).absolute()), "HF_HUB_OFFLINE": "1"}

    def start(self, run: RunInfo) -> Started:
        folder = Path(self.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):  # trackio would say nothing and keep nothing
            raise PermissionError(f"{folder} can't be written to")
        self._stay_here()
        import trackio

        self._project = accepted(self.project)
        self._run = trackio.init(
            project=self._project,
            name=shortened(run.name, LONGEST),
            group=run.study,
            config=run.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._rows = self._kept()
        opening = f"TRACKIO_DIR={folder} trackio show" if placement.PREFIX else "make dashboard"
        return Started(self._project, run.study, self._run.name, f"logs to {folder}; `{opening}` opens it")

    def log(self, row: dict[str, Any]) -> None:
        values = {name: value for name, value in row.items() if value is not None and name != "step"}
        self._put(values, row["step"])

    def _put(self, values: dict[str, Any], step: int) -> None:
        self._run.log(values, step=step)
        self._step, self._rows = step, self._rows + 1

    def finish(self, record: dict[str, Any] | None, ranks: list[dict[str, Any]]) -> None:
        import pandas as pd
        import trackio
        from trackio.utils import get_storage_mode

        if record is not None:
            last = rows.final(record)
            if ranks:
                columns = ["step", "layer", "rank"]
                last["ranks/layers"] = trackio.Table(dataframe=pd.DataFrame(rows.by_layer(ranks), columns=columns))
                last["ranks/map"] = trackio.Image(rank_map(ranks), caption="rank of each layer")
            self._put(last, record.get("steps.done", getattr(self, "_step", 0)))
        trackio.finish()  # of the run that was opened last, this one
        # It writes in a thread, whose errors it keeps to itself. On a network's file system it leaves the rows
        # in files for the dashboard to take in, and there is no count yet.
        if get_storage_mode() == "sqlite" and (kept := self._kept()) != self._rows:
            raise OSError(f"{kept} of {self._rows} rows are in {self.dir}")

    def _kept(self) -> int:
        from trackio.sqlite_storage import SQLiteStorage

        return int(SQLiteStorage.get_log_count(self._project, run_id=self._run.id))
