"""A search: a sweep whose runs Optuna chooses, one batch after the other."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.study_sweeper import StudySweeper
from trainer.data.sources.paths import expanded
from trainer.errors import ConfigError
from trainer.objectives import kinds
from trainer.sweeps import sweep

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from trainer.sweeps.search import Search

log = logging.getLogger("trainer.sweeps.search")


class SearchSweeper(StudySweeper):
    """See conf/hydra/sweeper/search.yaml."""

    def __init__(
        self,
        trials: int,
        name: str,
        storage: str | None,
        sampler: DictConfig,
        pruner: DictConfig | None,
        params: DictConfig | None = None,
        batch: int | None = None,
    ) -> None:
        super().__init__(params, batch)
        if trials < 1:
            raise ConfigError(f"hydra.sweeper.trials: {trials}, allowed: a whole number ≥ 1")
        self.trials, self.name, self.storage, self.sampler, self.pruner = trials, name, storage, sampler, pruner

    def sweep(self, arguments: list[str]) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError("hydra/sweeper: search needs optuna; install it with: pip install 'loratory[optuna]'")
        sweep.refuse_several_processes(type(self).__name__, self.master.hydra.launcher)
        sweep.refuse_ignored(self.master.hydra, multirun=True)
        from trainer.sweeps.search import Search, split

        texts = [f"{key}={value}" for key, value in self.params.items()] + arguments
        by_key = {
            override.get_key_element(): override
            for override in OverridesParser.create(config_loader=self.loader).parse_overrides(texts)
        }  # the command line wins
        self.fixed, space = split(list(by_key.values()))
        self._begin([])
        task = self.loader.load_sweep_config(self.master, self.fixed)
        if task.machine.dry_run:
            raise ConfigError("machine.dry_run: true in a search, allowed: false; its trials depend on results")
        folder = expanded(task.runs_dir) / task.study
        settings = {
            "maximize": kinds.metric(task.task).higher_is_better,
            "sampler": plain(self.sampler),
            "pruner": plain(self.pruner),
        }
        storage = self.storage or str(folder.absolute() / "search.journal")
        size = self.batch or sweep.side_by_side(self.master.hydra.launcher)
        with Search.opened(folder, storage, self.name, space, self.trials, **settings) as search:
            existing = len(search.study.trials)
            log.info("search %s: %d trials, %d of them exist already", self.name, self.trials, existing)
            while trials := search.next(size):
                self._try(search, trials)
            self._report(search)
        self._conclude()

    def _try(self, search: Search, trials: Sequence[FrozenTrial]) -> None:
        """Carries out the unfinished runs of some trials and reports the results of all to the search."""
        first = len(self.runs.jobs)
        self.runs.forget()
        left = []
        for number, trial in enumerate(trials, start=first):
            chosen = [f"{key}={Override._get_value_element_as_str(value)}" for key, value in trial.params.items()]
            self.runs.jobs.append([*self.fixed, *chosen, search.pruner_override(trial)])
            run = self.runs.plan(number)
            log.info("trial %d: %s: %s", trial.number, " ".join(chosen), run.title)
            if run.done:
                self.tally["done already"] += 1
                log.info("done already: %s", run.summary)
            else:
                left.append(number)
        if left:
            self._carry_out(left)
        self.runs.forget()
        for number, trial in enumerate(trials, start=first):
            run = self.runs.plan(number)
            search.tell(trial, run.record, run.folder)

    def _name(self, number: int) -> list[str]:
        return []  # the parameters of a trial are logged before it starts

    def _report(self, search: Search) -> None:
        states = [trial.state.name for trial in search.study.trials]
        log.info(
            "search %s: %d complete, %d pruned, %d failed, %d running elsewhere",
            *(self.name, *(states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING"))),
        )
        if "COMPLETE" in states:
            best = search.study.best_trial
            chosen = " ".join(f"{key}={Override._get_value_element_as_str(v)}" for key, v in best.params.items())
            log.info("best: trial %d: %.4f on the selection split: %s", best.number, best.value, chosen)


def plain(node: Any) -> Any:
    """A config node as plain Python; anything else is returned as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
