"""Choices are scored as lm-evaluation-harness scores them."""

from __future__ import annotations

import random

import pandas as pd
import pytest

from tests.conftest import folder_of
from tests.trainer.objectives import language
from tests.trainer.objectives.conftest import WORDS
from trainer.runs.finished import opened

lm_eval = pytest.importorskip("lm_eval", reason="extra: lm-eval")

ITEMS = 100
TASK = """
task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {table}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def _items(ending: str) -> list[dict]:
    """Questions with answers of unlike lengths, among them letters of several bytes and capitals."""
    draw = random.Random(1)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices([*WORDS, "naïve", "Über"], k=draw.randint(least, most)))

    found = []
    for _ in range(ITEMS):
        choices = [words(1, 6) for _ in range(draw.randint(2, 5))]
        found.append({"prompt": words(2, 9) + ending, "choices": choices, "label": draw.randrange(len(choices))})
    return found


@pytest.mark.parametrize("ending", ["", "\nAnswer:"])
def test_each_choice_and_both_accuracies_are_the_harnesss(ending, trained, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    table = language.write(tmp_path / "items.jsonl", _items(ending))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text(TASK.format(table=table))
    # Room for all tokens: the two cut a text that is too long in different ways.
    model = language.make(tmp_path / "model", max_position_embeddings=128)
    room = [f"model.path={model}", "data.max_length=128"]
    record = trained("choices", f"task.source.validation_path={table}", *room)
    folder = folder_of(record, tmp_path)
    with opened(folder) as run:
        ids = run.objective.content.splits["validation"]["id"][:]
        harness = HFLM(pretrained=run.model, tokenizer=run.context.tokenizer, batch_size=8, device="cpu")
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
        found = lm_eval.simple_evaluate(
            model=harness, tasks=["own_choices"], task_manager=manager, log_samples=True, bootstrap_iters=0
        )
    scores = found["results"]["own_choices"]
    assert record.data.report == ITEMS
    assert record.metrics["accuracy"] == pytest.approx(scores["acc,none"], abs=1e-12)
    assert record.metrics["accuracy_norm"] == pytest.approx(scores["acc_norm,none"], abs=1e-12)
    kept = pd.read_parquet(folder / "predictions.parquet")
    for sample in found["samples"]["own_choices"]:
        own = kept[kept.id == ids[sample["doc_id"]]].iloc[0]
        likelihoods = [float(one[0]) for one in sample["filtered_resps"]]
        assert own.reference == int(sample["target"])
        assert own.prediction == max(range(len(likelihoods)), key=likelihoods.__getitem__)
        assert own["stats.nll"] == pytest.approx(-likelihoods[own.reference], rel=1e-4)
        assert own["stats.correct_norm"] == sample["acc_norm"]
