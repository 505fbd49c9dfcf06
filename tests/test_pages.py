"""README.md and the pages in docs/: links lead somewhere, commands are ones that there are, the example runs."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.commands.cli import parser as analysis_parser
from docs_build.hooks import made_places
from tests.composing import composed
from tests.conftest import ROOT
from trainer.data.sources.files import Files
from variants.core.variant import field_names
from weights.cli import parser as weights_parser

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("variants", "benchmarks", "runs")),
]
MADE = {ROOT / "docs" / place for place in made_places()}  # by `make docs`, which follows links to their headings
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands() -> list[str]:
    """Every command of the pages that starts with python, without its comment."""
    found = []
    for page in PAGES:
        for block in blocks(page, ""):
            lines = block.replace("\\\n", " ").splitlines()
            found += [re.split(r" +# ", line)[0].strip() for line in lines if line.startswith("python ")]
    return sorted(set(found))


def blocks(page: Path, language: str) -> list[str]:
    """The texts of a page's code blocks in a language; "" for those that name none."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for named, text in fences if named == language]


def of(start: str) -> list[str]:
    return [command for command in commands() if command.startswith(start)]


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() or file in MADE, target
        assert not anchor or file in MADE or anchor in anchors(file), target


def test_every_page_is_linked_from_the_readme_or_a_page_that_is() -> None:
    seen, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen | MADE or page.suffix != ".md":
            continue
        seen.add(page)
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                queue.append((page.parent / target).resolve())
    assert set(PAGES) <= seen


@pytest.mark.parametrize("command", of("python train.py"))
def test_settings_of_a_run_are_ones_that_there_are(command: str) -> None:
    words = shlex.split(command)[2:]
    settings = [word for word in words if "=" in word]
    assert set(words) - set(settings) <= {"-m", "--dry-run", "--cfg", "job", "--config-dir", "conf", "…"}
    if any(word in ("variant=mine", "experiment=ranks") for word in settings):
        return  # files that the reader writes
    first = [re.sub(r"^([^=\[]*=[^\[{'\"]*?),.*$", r"\1", word) for word in settings]  # of a sweep
    composed(first)


@pytest.mark.parametrize("command", [*of("python -m analysis"), *of("python -m weights")])
def test_verbs_and_their_options_are_ones_that_there_are(command: str) -> None:
    words = [
        word for word in shlex.split(re.sub(r" \[[^]]*\]", "", command))[2:] if word != "…"
    ]  # […]: may be left out
    parser = {"analysis": analysis_parser, "weights": weights_parser}[words[0]]()
    parser.parse_args([word.split("|")[0] for word in words[1:]])


EXAMPLES = blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("last", range(len(EXAMPLES)), ids=["loop", "Trainer"])
def test_the_examples_model_is_trained_and_loaded_by_peft(last: int, tmp_path: Path, monkeypatch) -> None:
    import torch
    from transformers import BertForSequenceClassification

    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    for example in EXAMPLES[: last + 1]:  # as typed one after the other
        torch.manual_seed(0)
        exec(example, session)
    model, tokens = session["model"].eval(), session["tokens"]  # with PEFT's layers in place of the method's
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(BertForSequenceClassification(session["config"]), "adapter").eval()
    with torch.no_grad():
        outputs, expected = loaded(input_ids=tokens).logits, model(input_ids=tokens).logits
        with loaded.disable_adapter():
            assert not torch.equal(loaded(input_ids=tokens).logits, expected), "it has learned nothing"
    torch.testing.assert_close(outputs, expected)


TUTORIALS = ROOT / "docs" / "tutorials"


def test_the_tutorials_method_keeps_promises_and_its_score_orders_components(tmp_path: Path, monkeypatch) -> None:
    import torch

    from variants.core.adapters.adapter import LowRank
    from variants.testing import check_variant

    method, score = blocks(TUTORIALS / "own_method.md", "python")
    (tmp_path / "tutorial_method.py").write_text(method)
    (tmp_path / "tutorial_score.py").write_text(score)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("tutorial_method").Mine
    check_variant(mine, ["starts_at_the_base_model", "counts_by_formula", "says_what_decays", "saves_and_loads"])
    (settings,) = blocks(TUTORIALS / "own_method.md", "yaml")
    assert set(yaml.safe_load(settings)) - {"_target_"} == set(field_names(mine))

    adapter = LowRank(torch.nn.Linear(4, 3), 2, 1.0)
    with torch.no_grad():
        adapter.B.copy_(torch.tensor([[0.0, 1.0], [-3.0, 1.0], [2.0, 1.0]]))
    scores = importlib.import_module("tutorial_score").LargestOutput().scores({"layer": adapter})
    assert scores["layer"].tolist() == [3, 1]


def test_the_tutorials_table_is_a_task(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = blocks(TUTORIALS / "own_task.md", "python")
    exec(script, {})
    assert set(blocks(TUTORIALS / "own_task.md", "text")[0].splitlines()) <= set(
        Path("train.csv").read_text().splitlines()
    )
    data = Files("train.csv", text="message", label="topic").load()
    assert sorted(data.labels) == ["cancel", "change", "complaint", "where"]


def test_the_tutorials_frame_has_its_columns(capsys) -> None:
    (script,) = blocks(TUTORIALS / "first_study.md", "python")
    exec(script.replace("runs/first", str(ROOT / "runs" / "reference" / "precision")), {})
    assert capsys.readouterr().out.split()[:3] == ["variant", "seed", "metric.value"]


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("variants", "trainer", "analysis", "weights", "benchmarks", "hydra_plugins", "docs_build")


def test_the_architecture_names_every_room_and_what_lies_beside_the_rooms() -> None:
    rooms = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert sorted(str(room.relative_to(ROOT)) for room in rooms if f"{room.name}/" not in ARCHITECTURE) == []
    for room in ("trainer", "variants/core"):
        files = {path.name for path in (ROOT / room).glob("*.py")} - {"__init__.py"}
        assert sorted(name for name in files if name not in ARCHITECTURE) == []


def test_the_files_that_the_architecture_sends_to_are_there() -> None:
    table = ARCHITECTURE[ARCHITECTURE.index("| to | open |") :]
    paths = re.findall(r"`((?:\w+/)+[\w.]*)`", table)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path
