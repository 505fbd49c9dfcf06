"""README.md and the pages in docs/: links lead somewhere, commands are ones that there are, the example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from analysis.commands.cli import parser as analysis_parser
from tests.composing import composed
from tests.conftest import ROOT
from weights.cli import parser as weights_parser

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("variants", "benchmarks", "runs")),
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands() -> list[str]:
    """Every command of the pages that starts with python, without its comment."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [re.split(r" +# ", line)[0].strip() for line in lines if line.startswith("python ")]
    return sorted(set(found))


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
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_linked_from_the_readme_or_a_page_that_is() -> None:
    seen, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen or page.suffix != ".md":
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
    words = [word for word in shlex.split(command)[2:] if word != "…"]
    parser = {"analysis": analysis_parser, "weights": weights_parser}[words[0]]()
    parser.parse_args([re.split(r"[|\[]", word)[0] if "|" in word else word for word in words[1:] if word[0] != "["])


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["loop", "Trainer"])
def test_the_examples_model_is_trained_and_loaded_by_peft(
    example: str, tiny_model: Path, tmp_path: Path, monkeypatch
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    rows = torch.randint(5, 12, (4, 6), generator=torch.Generator().manual_seed(0))
    there = {
        "model": AutoModelForSequenceClassification.from_pretrained(tiny_model),
        "batches": [{"input_ids": rows, "labels": torch.tensor([0, 1, 0, 1])}] * 3,
        "rows": [{"input_ids": row, "labels": label} for row, label in zip(rows, [0, 1, 0, 1], strict=True)],
        "args": TrainingArguments("out", max_steps=3, learning_rate=1e-2, use_cpu=True, report_to="none"),
        "Trainer": Trainer,
    }
    exec(example, there)
    model = there["model"].eval()  # with PEFT's layers in place of the method's
    loaded = peft.PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(tiny_model), "adapter")
    with torch.no_grad():
        outputs, expected = loaded.eval()(input_ids=rows).logits, model(input_ids=rows).logits
        with loaded.disable_adapter():
            assert not torch.equal(loaded(input_ids=rows).logits, expected), "it has learned nothing"
    torch.testing.assert_close(outputs, expected)


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("variants", "trainer", "analysis", "weights", "benchmarks", "hydra_plugins")


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
