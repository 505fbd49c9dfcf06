"""What a language model forgets: its perplexity on general texts before and after training."""

from __future__ import annotations

import json

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from tests.conftest import ROOT, folder_of
from tests.trainer.objectives import language
from tests.trainer.objectives.conftest import _rows, overrides
from trainer import config as run_config
from trainer import config_files
from trainer.errors import ConfigError
from trainer.sweeps import sweep as sweeps


@pytest.fixture
def general(tmp_path, monkeypatch):
    """A task of texts that stands in conf/task, and its table."""
    path = language.write(tmp_path / "general.jsonl", _rows()["text"][:9])
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    source = {"_target_": "trainer.data.sources.files.Files", "label": None}
    source |= {"train_path": str(path), "validation_path": str(path)}
    (folder / "prose.yaml").write_text(json.dumps({"name": "prose", "kind": "causal_lm", "source": source}))
    other = {**source, "prompt": "prompt", "response": "response", "label": "label"}
    (folder / "sums.yaml").write_text(json.dumps({"name": "sums", "kind": "causal_lm", "source": other}))
    monkeypatch.setenv(config_files.VARIABLE, str(tmp_path / "conf"))
    return path


def test_it_is_what_runs_on_these_texts_find(general, trained, tmp_path):
    """Before: as the untuned model evaluated on them; after: of the trained model, as its own evaluation of them."""
    texts = [f"task.source.{name}_path={general}" for name in ("train", "validation")]
    base = trained("text", *texts, "variant=base", "study=base")
    record = trained("text", *texts, "task.retention=prose")
    assert record.retention.before == pytest.approx(base.metrics["perplexity"], rel=1e-6)
    assert record.retention.after == pytest.approx(record.metrics["perplexity"], rel=1e-6)
    assert record.retention.texts == 9 and record.time.retention > 0
    assert record.retention.after < record.retention.before


def test_it_changes_nothing_else(general, trained, tmp_path):
    from safetensors.torch import load_file

    bare = trained("response", "study=bare")
    for retention in ("task.retention=prose", f"task.retention_path={general}"):
        record = trained("response", retention)
        assert record.metrics == bare.metrics and record.run_id != bare.run_id
        assert record.steps == bare.steps and record.memory.weights == bare.memory.weights
        one, two = (load_file(folder_of(r, tmp_path) / "adapter/state.safetensors") for r in (bare, record))
        assert all((one[name] == two[name]).all() for name in one)
    assert bare.retention.before is None and "retention.before" not in bare.row()


def test_tables_show_it_and_a_finished_run_opens(general, trained, tmp_path, capsys):
    from analysis.commands.cli import main
    from trainer.runs.finished import opened

    record = trained("choices", f"task.retention_path={general}", "data.eval_limit=4")
    assert record.retention.texts == 4 and "retention_path" not in json.dumps(record.identity)
    with opened(folder_of(record, tmp_path)) as run:
        assert run.evaluate().metrics == record.metrics
    capsys.readouterr()
    assert main(["table", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "general before" in out and f"{record.retention.after:.2f}" in out and "perplexity on general texts" in out


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["task.retention=nothing"], "task.retention: 'nothing', allowed: the name of a file in conf/task"),
        (["task.retention_path=none.jsonl"], "task.retention_path: 'none.jsonl' can't be read: No such file"),
        (["task.retention=sums"], "general.jsonl': "),
    ],
)
def test_texts_that_are_none_are_one_line(more, line, general, trained):
    with pytest.raises(ConfigError) as caught:
        trained("response", *more)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_both_are_refused_and_another_kind_has_none(general, trained, carry_out):
    with pytest.raises(ConfigError, match=r"task\.retention_path: .* with task\.retention: 'prose', allowed: one of"):
        trained("response", "task.retention=prose", f"task.retention_path={general}")
    with pytest.raises(ConfigError, match=r"task\.retention: no such field"):
        carry_out("task.retention=prose")


def test_runs_of_a_sweep_that_differ_in_their_texts_have_names_of_their_own(general, llama, tables, tmp_path):
    other = language.write(tmp_path / "other.jsonl", _rows()["text"][:5])
    texts = [*overrides(llama, tmp_path), *tables["response"], f"task.retention_path={general},{other}"]
    run_config.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        runs = sweeps.Runs(loader, master, sweeps.product(loader, texts))
        first, second = (runs.plan(number).run_id for number in range(len(runs)))
    assert first != second
