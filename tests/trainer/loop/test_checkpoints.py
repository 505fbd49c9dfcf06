"""What a run is made from besides its checkpoints: `best/`, and whose both of them are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainer.left_behind import outcome
from trainer.errors import RunFailed
from trainer.loop import unfinished
from trainer.loop.checkpoints import Best, Checkpoints
from trainer.sweeps.plan import plan
from variants.core import state_files

pytestmark = pytest.mark.slow

# Of 20 steps the 4th is the best, and later checkpoints have passed it.
SETTINGS = ["machine.save_every=3", "train.max_steps=20", "train.eval_every=4", "variant.dropout=0.1"]


def die(*arguments: object) -> None:
    raise KeyboardInterrupt


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit of the weights": lambda best: flip(best / "state.safetensors"),
    "weights cut off": lambda best: (best / "state.safetensors").write_bytes(b"cut"),
    "no weights": lambda best: (best / "state.safetensors").unlink(),
    "half of the outline": lambda best: (best / "state.json").write_text("{"),
    "no sums": lambda best: (best / "sha256.json").unlink(),
    "empty sums": lambda best: (best / "sha256.json").write_text(""),
    "another step": lambda best: (best / "run.json").write_text('{"run": "x", "step": 99}'),
    "gone": shutil.rmtree,
}


@pytest.fixture
def killed_at_the_end(carry_out, monkeypatch, tmp_path):
    """Carries out a run whose process dies before its best model is handed over; its folder."""

    def carried_out(*overrides: str) -> Path:
        with monkeypatch.context() as patched:
            patched.setattr(Best, "load", die)
            with pytest.raises(KeyboardInterrupt):
                carry_out(*SETTINGS, *overrides)
        study = next(text.partition("=")[2] for text in reversed(["study=test", *overrides]) if "study=" in text)
        (folder,) = (path for path in (tmp_path / "runs" / study).iterdir() if path.name != ".locks")
        return folder

    return carried_out


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_best_model_is_made_again(carry_out, killed_at_the_end, tmp_path, caplog, damage):
    straight = outcome(carry_out(*SETTINGS, "study=straight"), tmp_path)
    folder = killed_at_the_end("study=cut")
    damage(folder / "best")
    found = outcome(carry_out(*SETTINGS, "study=cut"), tmp_path)
    assert found == straight
    lines = [line for line in caplog.messages if line.startswith("best/: ")]
    assert len(lines) == 1 and (
        "the run resumes from an earlier checkpoint" in lines[0] or "the run starts again" in lines[0]
    )


def test_a_whole_best_model_is_used_without_a_word(carry_out, killed_at_the_end, tmp_path, caplog):
    straight = outcome(carry_out(*SETTINGS, "study=straight"), tmp_path)
    killed_at_the_end("study=cut")
    assert outcome(carry_out(*SETTINGS, "study=cut"), tmp_path) == straight
    assert not [line for line in caplog.messages if "best/" in line]


def test_what_another_run_left_is_not_taken_for_this_ones(carry_out, killed_at_the_end, tmp_path, caplog):
    straight = outcome(carry_out(*SETTINGS, "seed=1", "study=straight"), tmp_path)
    other = killed_at_the_end("study=other", "seed=5")
    mine = killed_at_the_end("study=cut", "seed=1")
    for name in (unfinished.BEST, unfinished.CHECKPOINTS):
        shutil.rmtree(mine / name)
        shutil.copytree(other / name, mine / name)
    assert outcome(carry_out(*SETTINGS, "seed=1", "study=cut"), tmp_path) == straight
    assert f"run.json: it belongs to the run {other.name}, not to {mine.name}" in caplog.text


def test_a_model_that_is_damaged_while_the_run_goes_on_is_not_reported(tmp_path):
    best = Best(tmp_path)
    best.write(4, {"parameters": {}})
    assert best.load(4) == {"parameters": {}}
    with pytest.raises(
        RunFailed, match="best/: the model of step 4, not of 8; the same command resumes from an earlier"
    ):
        best.load(8)
    (tmp_path / "best" / "state.json").write_text("{")
    with pytest.raises(RunFailed, match=r"best/: state\.json: changed since it was written"):
        best.load(4)


def test_killed_between_two_best_models_one_of_them_is_there(tmp_path, monkeypatch):
    best = Best(tmp_path)
    best.write(4, {"step": 4})
    with monkeypatch.context() as patched:
        patched.setattr(state_files, "save", die)
        with pytest.raises(KeyboardInterrupt):
            best.write(8, {"step": 8})
    assert best.load(4) == {"step": 4}
    for moment in ("rmtree", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(Best, "_replace", lambda self: None)
            best.write(8, {"step": 8})
        if moment == "replace":
            shutil.rmtree(tmp_path / "best")
        assert Checkpoints(tmp_path).newest(best) is None
        assert best.load(8) == {"step": 8} and not (tmp_path / unfinished.NEW_BEST).exists()


def test_a_finished_run_killed_before_it_cleared_up_is_cleared_at_the_next_plan(
    carry_out, configured, tiny_overrides, monkeypatch, tmp_path
):
    settings = [*SETTINGS, "train.max_steps=8"]
    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            carry_out(*settings)
    (folder,) = (path for path in (tmp_path / "runs" / "test").iterdir() if path.name != ".locks")
    assert (folder / "checkpoints").exists() and (folder / "best").exists()
    assert plan(configured([*tiny_overrides, *settings])).done
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter", "config.yaml", "metrics.jsonl", "predictions.parquet", "ranks.jsonl", "record.json"}


def test_an_unfinished_run_keeps_all_it_has_at_a_plan(killed_at_the_end, configured, tiny_overrides):
    folder = killed_at_the_end()
    assert not plan(configured([*tiny_overrides, *SETTINGS])).done
    assert list((folder / "checkpoints").glob("step-*")) and (folder / "best").exists()
