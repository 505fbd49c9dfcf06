"""Ratings of items by users: errors and rankings by hand, embeddings adapted, and who is not known."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.composing import composed
from tests.conftest import folder_of
from tests.trainer.objectives import other_kinds, raters
from tests.trainer.objectives.other_kinds import carried_out
from trainer.data.sources.ratings import Ratings
from trainer.errors import ConfigError
from trainer.loop.batches import Collator
from trainer.loop.network import Network
from trainer.runs import assemble
from trainer.runs.finished import opened
from trainer.sweeps.plan import plan
from weights import cli

KIND = "rating"
EMBEDDINGS = "variant.targets=[user_factors,item_factors]"


@pytest.fixture(scope="module")
def factors(tmp_path_factory):
    """Matrix factorisation: a model without a layer."""
    return raters.model(tmp_path_factory.mktemp("factors"), layers=0)


@pytest.fixture
def told(factors, tmp_path):
    def overrides(*more, model=factors, table=None):
        table = table or raters.write(tmp_path / "ratings.csv")
        return [*other_kinds.overrides(KIND, model, tmp_path), f"task.source.train_path={table}", EMBEDDINGS, *more]

    return overrides


@pytest.fixture
def checked(told):
    return other_kinds.checker(told)


# -- numbers by hand ------------------------------------------------------------------------------


def test_a_rating_is_the_product_of_two_vectors_and_both_biases(factors, checked):
    parts = checked()
    model = assemble.load(parts).eval()
    weights = load_file(factors / "model.safetensors")
    users, items = torch.tensor([1, 2]), torch.tensor([[0, 5], [3, 3]])
    found = model(user_ids=users, item_ids=items).logits
    for row, column in ((0, 0), (0, 1), (1, 0)):
        user, item = int(users[row]), int(items[row, column])
        expected = 3.0 + weights["user_factors.weight"][user] @ weights["item_factors.weight"][item]
        expected += (weights["user_bias.weight"][user] + weights["item_bias.weight"][item])[0]
        assert float(found[row, column].detach()) == pytest.approx(float(expected), abs=1e-6)


def test_the_loss_is_the_mean_squared_error_over_ratings(checked):
    parts = checked()
    network = Network(assemble.load(parts).eval(), parts.source, torch.device("cpu"), False)
    rows = parts.rows.report["validation"]
    collate = Collator(parts.objective.pad(parts.source), parts.objective.weigh)
    places = [0, 1, len(rows) - 1]
    batch = collate([dict(rows[place]) for place in places])
    assert batch.labels.isnan().any() and batch.weight == sum(rows.lengths[place] for place in places)
    assert int(parts.objective.units(batch)) == batch.weight
    with torch.no_grad():
        predicted = [values for values, _ in parts.objective.predict(network, batch)]
    errors = np.concatenate(
        [(guess - rows[place]["labels"]) ** 2 for place, guess in zip(places, predicted, strict=True)]
    )
    assert float(parts.objective.loss(network, batch).mean.detach()) == pytest.approx(errors.mean(), rel=1e-5)
    apart = collate([dict(rows[0]), dict(rows[1]) | {"weight": 0}])
    alone = collate([dict(rows[0])])
    sums = [parts.objective.loss(network, one).sum.detach() for one in (apart, alone)]
    assert apart.weight == alone.weight and float(sums[0]) == pytest.approx(float(sums[1]), rel=1e-6)


@pytest.mark.parametrize(
    ("relevant", "ndcg", "recall"),
    [
        # Items by score: 3 (seen), 1, 0, 2, 4. Rated are 0 (5 stars), 4 (2 stars).
        (None, (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)), 1.0),
        (4.0, 1 / math.log2(3), 1.0),
    ],
)
def test_a_ranking_by_hand(relevant, ndcg, recall, checked):
    objective = checked(f"task.relevant={relevant or 'null'}").objective
    scores = np.array([3.0, 4.0, 2.0, 9.0, 1.0])
    own, ratings = np.array([0, 4, 0]), np.array([5.0, 2.0, np.nan])
    found = objective._ranked(scores, own, np.array([3, -1]), ratings)
    assert found == pytest.approx({"ndcg": ndcg, "recall": recall, "ranked": 1.0})


def test_only_the_ten_first_of_a_ranking_count(checked):
    objective = checked().objective
    scores = -np.arange(16.0)
    found = objective._ranked(scores, np.array([9, 10]), np.array([-1]), np.array([5.0, 5.0]))
    best = 1 + 1 / math.log2(3)
    assert found == pytest.approx({"ndcg": 1 / math.log2(11) / best, "recall": 0.5, "ranked": 1.0})


def test_a_user_without_a_relevant_item_has_no_ranking(checked):
    objective = checked("task.relevant=4").objective
    found = objective._ranked(np.arange(16.0), np.array([1]), np.array([-1]), np.array([3.0]))
    assert found == {"ndcg": 0.0, "recall": 0.0, "ranked": 0.0}


def test_what_train_has_of_a_user_is_no_candidate_and_what_is_held_out_is(checked):
    parts = checked("data.protocol=split", "data.select_share=0.3")
    rows = parts.objective.content.splits["train"]
    of_train = {}
    for user, item in zip(rows["user"], rows["item"], strict=True):
        of_train.setdefault(raters.USERS.index(user), set()).add(raters.ITEMS.index(item))
    for evaluated in (parts.rows.select, parts.rows.report["validation"]):
        for place in range(len(evaluated)):
            row = evaluated[place]
            assert set(row["seen"]) == of_train.get(row["user"], set()) - set(row["items"])


# -- a model from scratch, and its adaptation -------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1])
def test_a_new_model_is_trained_and_exported_and_its_embeddings_are_adapted(layers, told, tmp_path, capsys):
    """Users of odd number change their mind: what full training has learned is adapted by updates of rank 2."""
    rows = raters.rows()
    shared = ["train.batch_size=16", "optim.lr=3e-2"]
    new = ["model=two_tower", f"model.layers={layers}", "model.factors=8", "model.mean=3.0", "~model.path"]
    first = [name for name in told() if not name.startswith(("model", "variant"))]
    new = [name for name in new if not name.startswith("~")]
    before = carried_out([*first, *new, *shared, "variant=full", "train.max_steps=120", "study=scratch"])
    assert before.metrics["rmse"] < 1.3 and before.params.total == before.params.adapter_start
    folder = folder_of(before, tmp_path)
    assert cli.main(["export", str(folder), "--to", "merged"]) == 0, capsys.readouterr()
    pretrained = folder / "export" / "merged"
    changed = [(u, i, 6.0 - rating if int(u[1:]) % 2 else rating) for u, i, rating in rows]
    again = told(model=pretrained, table=raters.write(tmp_path / "changed.csv", changed))
    settings = [*shared, "variant.rank=2", "train.max_steps=120", "study=adapted"]
    base = carried_out([*[name for name in again if name != EMBEDDINGS], "variant=base", "study=base"])
    adapted = carried_out([*again, *settings])
    assert base.metrics["rmse"] > 1.5 and adapted.metrics["rmse"] < base.metrics["rmse"] - 0.3
    assert adapted.metrics["ndcg_10"] > 0 and adapted.params.head == 0
    for to in ("peft", "merged"):
        assert cli.main(["export", str(folder_of(adapted, tmp_path)), "--to", to]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("variant", "more"),
    [
        ("adalora", ["variant.rank=2", "variant.target_rank=1"]),
        ("sparse", ["variant.rank=2"]),
        ("peft_lora", []),
        ("dora", []),
        ("svft", []),
    ],
)
def test_methods_adapt_embeddings(variant, more, told):
    assert carried_out([*told("train.max_steps=4"), f"variant={variant}", *more]).status == "done"


def test_an_example_is_a_user(told, tmp_path):
    record = carried_out(told())
    with opened(folder_of(record, tmp_path)) as made:
        found = made.predictions(rows := made.context.rows.report["validation"])
    ratings = made.context.objective.content.splits["validation"]
    assert len(found) == len(set(ratings["user"])) == len(rows.examples)
    assert found.stats["ratings"].sum() == len(ratings) == record.data.report
    errors = [
        (float(guess) - float(right)) ** 2
        for one, other in zip(found.prediction, found.reference, strict=True)
        for guess, right in zip(one.split(), other.split(), strict=True)
    ]
    assert record.metrics["rmse"] == pytest.approx(math.sqrt(np.mean(errors)), rel=1e-5)


# -- one's own ratings, and what doesn't fit --------------------------------------------------------


def test_tables_of_every_format_give_the_same_ratings(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(raters.rows(), columns=["user", "item", "rating"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    found = [Ratings(str(path)).load() for path in sorted(tmp_path.glob("a.*"))]
    assert len(found) == 3 and all(
        one.splits[name].columns == found[0].splits[name].columns for one in found for name in one.splits
    )


ROWS = raters.rows()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*ROWS, ROWS[2]], r"row \d+ has the user 'u\d+' and the item 'i\d+' of row 3; allowed: once"),
        ([*ROWS, ("u1", "x", 3.0)], r"row \d+ of \w+: the item 'x' is none of the model's 16 items; allowed"),
        ([*ROWS, ("x", "i1", 3.0)], r"row \d+ of \w+: the user 'x' is none of the model's 12 users; allowed"),
        ([*ROWS, ("u1", "", 3.0)], r"column 'item': row \d+ is ''; allowed: a name"),
        ([*ROWS, ("new", "i1", "nan")], r"column 'rating': row \d+ is 'nan'; allowed .*: a finite number"),
        ([], "has no rows; allowed: one or more"),
    ],
)
def test_a_row_that_can_not_be_is_named(rows, said, checked, tmp_path):
    with pytest.raises(ConfigError, match=said):
        checked(table=raters.write(tmp_path / "other.csv", rows))


def test_users_and_items_without_a_rating_to_train_on_are_counted(checked, tmp_path, caplog):
    trained = raters.write(tmp_path / "train.csv", [row for row in ROWS if row[0] != "u0" and row[1] != "i1"])
    parts = checked(f"task.source.validation_path={raters.write(tmp_path / 'all.csv')}", table=trained)
    splits = {"train": parts.rows.train, "validation": parts.rows.report["validation"]}
    lines = [line for _, line in parts.objective.notes(splits)]
    assert [line.partition(";")[0] for line in lines] == [
        "1 users of validation have no rating in train",
        "1 items of validation have no rating in train",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["task.metrics=[accuracy]"], "task.metrics: 'accuracy' in a task of ratings; allowed: rmse, mae, ndcg_10"),
        (
            ["task.metrics=[rmse]", "task.relevant=4"],
            r"task\.relevant: 4(\.0)? without ndcg_10 or recall_10; allowed: null",
        ),
        (["task.relevant=9"], r"task\.relevant: 9(\.0)?, allowed: up to 5, the highest rating of validation"),
        (["variant.targets=all-linear"], r"leaves no layer to adapt; there is no linear one, but: .*user_factors"),
        (["train.gradient_checkpointing=true"], "train.gradient_checkpointing: true with TwoTower, allowed: false"),
        (["task.kind=null", "task.metrics=[rmse]"], "task: columns user, item, rating, allowed for a class"),
    ],
)
def test_what_a_run_can_not_do_is_refused(more, said, checked):
    with pytest.raises(ConfigError, match=said):
        checked(*more)


def test_a_model_of_texts_is_refused(checked, tiny_model):
    with pytest.raises(
        ConfigError, match=r"its preprocessor_config\.json has no users and items; allowed: a model of rat"
    ):
        checked(model=tiny_model)


def test_names_of_another_model_are_refused(checked, tmp_path):
    model = raters.model(tmp_path / "model")
    names = json.loads((model / "preprocessor_config.json").read_text())
    names["items"].append("one more")
    (model / "preprocessor_config.json").write_text(json.dumps(names))
    with pytest.raises(ConfigError, match=r"names 17 items, and its config\.json has 16; allowed: as many"):
        checked(model=model)


def test_a_new_model_is_the_same_for_every_run_and_another_for_other_users(told, tmp_path):
    def planned(*more, table=None):
        kept = [name for name in told(table=table) if not name.startswith("model")]
        return plan(composed([*kept, "model=two_tower", *more]))

    one = planned()
    assert planned("seed=1").config.model == one.config.model and planned().run_id == one.run_id
    others = [planned("model.layers=1"), planned("model.seed=1"), planned("model.mean=2")]
    draw = random.Random(1)
    fewer = raters.write(tmp_path / "fewer.csv", draw.sample(ROWS, 20))
    others.append(planned(table=fewer))
    assert len({one.run_id, *(other.run_id for other in others)}) == 5
    moved = raters.write(tmp_path / "moved.csv")
    assert planned(table=moved).run_id == one.run_id
