"""The tasks that come with Loratory: their sizes, their splits, and what they refuse."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from trainer.data.sources import TaskData
from trainer.data.sources.glue import TASKS, Glue
from trainer.data.sources.hub_rows import HubRows
from trainer.data.sources.split import digest, held_out, normalised
from trainer.data.sources.vader import MoviePair, Snippet, merged, pairs, parse
from trainer.errors import ConfigError
from trainer.objectives import kinds
from trainer.objectives.metrics import check
from trainer.objectives.sequence_classification import OF_CLASSES, OF_NUMBERS

CONF = Path(__file__).parents[4] / "conf" / "task"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"

OF_ONES_OWN = ("file", "images", "sounds", "speech", "ratings")


def load(name: str, glue: Path | None = None) -> TaskData:
    config = OmegaConf.create({"glue": {"path": None if glue is None else str(glue)}})
    config.task = OmegaConf.load(CONF / f"{name}.yaml")
    return instantiate(config.task.source).load()


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_task_file_is_whole(path):
    config = OmegaConf.create({"glue": {"path": None}, "task": OmegaConf.load(path)})
    if path.stem == "vtab":
        config.task.set = "dtd"
    assert config.task.name == {"vtab": "vtab_dtd"}.get(path.stem, path.stem)
    assert path.read_text(encoding="utf-8").startswith("# ")
    if path.stem in OF_ONES_OWN:
        config.task.source.train_path = "train.csv"
    if path.stem == "mixture":
        config.task.source.tasks = {"piqa": 1, "openbookqa": 2}
    source = instantiate(config.task.source)
    regression = path.stem in ("stsb", "opinion")
    kind = config.task.get("kind")
    if kind is None:
        check(list(config.task.metrics), OF_NUMBERS if regression else OF_CLASSES, path.stem)
    elif kind in kinds.KINDS:
        assert kinds.metric(config.task) is not None
        assert {*config.task.metrics} <= {*kinds._class(kind).metrics}
    if path.stem in TASKS:
        assert (TASKS[path.stem].labels is None) == regression
        assert (source.repo, source.revision, source.path) == ("nyu-mll/glue", REVISION, None)
    if path.stem not in (*OF_ONES_OWN, "mixture") and not isinstance(source, HubRows):
        assert source.identity() == {}


EXPECTED = {
    "movie": {"train": {0: 4247, 1: 4166}, "validation": {0: 1078, 1: 1075}},
    "movie_pair": {"train": {0: 2111, 1: 2110}, "validation": {0: 540, 1: 539}},
    "boolq": {"train": {0: 3845, 1: 6334}, "validation": {0: 945, 1: 1573}},
}


@pytest.mark.network
@pytest.mark.parametrize("name", EXPECTED)
def test_the_documented_sizes(name, package_index):
    data = load(name)
    found = {split: dict(Counter(rows["label"][:])) for split, rows in data.splits.items()}
    assert found == EXPECTED[name]
    assert data.labels is not None and len(data.labels) == 2
    for rows in data.splits.values():
        assert len(set(rows["id"][:])) == len(rows)
    column = "text_pair" if name == "boolq" else "text"  # a passage of BoolQ has several questions
    train, validation = ({normalised(text) for text in data.splits[split][column]} for split in ("train", "validation"))
    assert not train & validation
    said = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    for split, counts in found.items():
        assert f"{sum(counts.values()):,} {split}" in said


@pytest.mark.network
def test_opinion(package_index):
    data = load("opinion")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 10286, "validation": 2667}
    assert data.labels is None
    labels = data.splits["train"]["label"][:]
    assert min(labels) >= -4 and max(labels) <= 4
    assert not {normalised(t) for t in data.splits["train"]["text"]} & {
        normalised(t) for t in data.splits["validation"]["text"]
    }
    assert Counter(key.split("-")[0] for key in data.splits["train"]["id"]).keys() == {
        "amazon",
        "nyt",
        "tweets",
    }


@pytest.mark.network
def test_movie_pair_stays_within_the_splits_of_movie(package_index):
    movie, pair = load("movie"), load("movie_pair")
    for split in ("train", "validation"):
        rows = pair.splits[split]
        used = [normalised(text) for column in ("text", "text_pair") for text in rows[column]]
        assert len(set(used)) == len(used), "no snippet twice"
        other = {"train": "validation", "validation": "train"}[split]
        assert not set(used) & {normalised(text) for text in movie.splits[other]["text"]}
    signs = dict(zip(movie.splits["train"]["text"], movie.splits["train"]["label"], strict=True))
    for row in pair.splits["train"].select(range(200)):
        first, second = signs.get(row["text"]), signs.get(row["text_pair"])
        if None not in (first, second) and first != second:
            assert row["label"] == (0 if first > second else 1), "label 0: the first is rated higher"


def test_duplicates_are_merged_with_the_mean_of_their_ratings():
    rows = parse("1\t2.0\tSo  Good.\r\n2\t-1\tbad\r\n3\t1.0\tso good.", "movie")
    assert merged(rows) == [Snippet("movie-1", "So  Good.", 1.5), Snippet("movie-2", "bad", -1.0)]


def test_a_damaged_row_is_named():
    with pytest.raises(
        ConfigError, match=r"movieReviewSnippets_GroundTruth.txt, line 2 does not have id, rating and text"
    ):
        parse("1\t2.0\tgood\r\n2\tbad", "movie")


def test_pairs_differ_clearly_and_use_no_snippet_twice():
    draw = random.Random(0)
    snippets = [Snippet(str(n), f"text {n}", draw.uniform(-4, 4)) for n in range(300)]
    found = pairs(snippets, 1.5)
    assert len(found) > 140
    assert all(higher.rating - lower.rating >= 1.5 for higher, lower in found)
    used = [snippet.id for pair in found for snippet in pair]
    assert len(set(used)) == len(used)
    draw.shuffle(snippets)
    assert pairs(snippets, 1.5) == found, "the order of the file doesn't matter"


def test_a_margin_off_the_scale():
    with pytest.raises(ConfigError, match=r"task.source.margin: 9; allowed: above 0, at most 7"):
        MoviePair("vaderSentiment==3.3.2", "0" * 64, margin=9)


def test_splits_depend_on_the_text_alone():
    texts = [f"text {n}" for n in range(5000)]
    held = [text for text in texts if held_out(text, 0.2)]
    assert 900 < len(held) < 1100
    assert all(held_out(f"  {text.upper()}\n", 0.2) for text in held)
    assert digest("a b", "c") != digest("a", "b c") != digest("a b c")


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "rte"])
def test_glue_from_a_local_mirror(name, glue_folder):
    data = load(name, glue_folder)
    assert {split: len(rows) for split, rows in data.splits.items()} == TASKS[name].sizes
    assert data.labels == TASKS[name].labels
    expected = ["id", "text", "label"] if len(TASKS[name].columns) == 1 else ["id", "text", "text_pair", "label"]
    assert data.splits["train"].column_names == expected
    assert set(map(type, data.splits["train"]["label"])) == {float if name == "stsb" else int}
    identity = Glue(name, "nyu-mll/glue", REVISION, str(glue_folder)).identity()
    assert len(identity) == 2 and str(glue_folder) not in str(identity)


def mirror(folder: Path, task: str = "wnli", **changes: object) -> Path:
    """A local mirror of one task with made-up rows and the right sizes."""
    (folder / task).mkdir(parents=True)
    for split, size in TASKS[task].sizes.items():
        columns: dict[str, list[object]] = {name: [f"{name} {n}" for n in range(size)] for name in TASKS[task].columns}
        columns |= {"label": [n % 2 for n in range(size)], "idx": list(range(size))}
        if split == "train":
            columns |= changes  # type: ignore[arg-type]
        columns = {name: values for name, values in columns.items() if values is not None}
        table = pyarrow.table(columns)
        half = size // 2
        for part, piece in enumerate((table.slice(0, half), table.slice(half))):
            pyarrow.parquet.write_table(piece, folder / task / f"{split}-0000{part}-of-00002.parquet")
    return folder


def test_a_mirror_in_several_parts(tmp_path):
    data = load("wnli", mirror(tmp_path / "glue"))
    assert data.splits["train"]["id"][:3] == ["train-0", "train-1", "train-2"]
    assert data.splits["train"]["text"][634] == "sentence1 634"


def test_a_bad_mirror_is_described(tmp_path):
    def bad(folder: Path, task: str = "wnli") -> str:
        with pytest.raises(ConfigError) as error:
            load(task, folder)
        text = str(error.value)
        assert "\n" not in text and text.startswith("glue.path:")
        return text

    assert "has no folder wnli (found: none of GLUE's tasks)" in bad(tmp_path / "nowhere")
    good = mirror(tmp_path / "good")
    assert "has no folder cola (found: wnli)" in bad(good, "cola")
    short = {name: ["x"] * 100 for name in ("sentence1", "sentence2")} | {
        "label": [0, 1] * 50,
        "idx": [1] * 100,
    }
    assert "train has 100 examples; allowed: GLUE's 635" in bad(mirror(tmp_path / "short", **short))
    renamed = mirror(tmp_path / "renamed", sentence2=None, other=["x"] * 635)
    assert "has no column sentence2 (found: sentence1, label, idx, other)" in bad(renamed)
    assert "column label: row 1 is -1" in bad(mirror(tmp_path / "unlabelled", label=[-1] * 635))
    assert "column sentence1: row 635 is empty" in bad(mirror(tmp_path / "null", sentence1=["x"] * 634 + [None]))
    path = good / "wnli" / "train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert "train-00000-of-00002.parquet is truncated or not parquet" in bad(good)
    path.unlink()
    assert "wnli lacks train-*.parquet or some of its shards" in bad(good)


def test_an_unknown_task_of_glue():
    with pytest.raises(ConfigError, match=r"task.source.task: 'ax'; allowed: cola, sst2"):
        Glue("ax", "nyu-mll/glue", REVISION)
