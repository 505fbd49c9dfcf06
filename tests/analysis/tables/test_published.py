"""`--published`: other people's numbers beside ours."""

from __future__ import annotations

import csv
import statistics

import pytest
import yaml

from analysis.commands import cli
from analysis.tables import published
from analysis.tables.glue import AVERAGED


@pytest.fixture
def ours(store):
    """Two variants on two tasks of GLUE."""
    for variant, value in (("lora", 0.9), ("sora", 0.99)):
        store.add(variant, 0, value, "rte")
        store.add(variant, 0, value, "stsb", metric__name="pearson", metrics__pearson=value, metrics__spearman=value)


def test_rows_stand_in_a_block_of_their_own_in_italics(ours, table):
    out = table("runs", "--published", "adalora2023")
    assert out.labels[:4] == [
        "lora",
        "sora",
        "**published by others, another protocol: adalora2023**",
        "*full fine-tuning*",
    ]
    line = out.cells[out.labels.index("*AdaLoRA 0.32M*") + 1]
    assert line == ["*AdaLoRA 0.32M*", "*87.36*", "*91.63*", "", "", "*0.32M*", *[""] * 7]


def test_they_change_nothing_of_ours(ours, table):
    alone, beside = table("runs"), table("runs", "--published", "adalora2023")
    assert [line for line in beside.cells if line[0] in ("lora", "sora")] == alone.cells[1:]
    assert [note for note in beside.notes if not note.startswith("adalora2023")] == alone.notes


def test_a_number_that_beats_ours_is_not_marked(store, table):
    for variant in "ab":
        store.add(variant, 0, 0.5 if variant == "a" else 0.4, "rte")
    for form, marks in (("md", "**8"), ("latex", "\\textbf{8"), ("html", 'class="best"><span>8')):
        assert marks not in table("runs", "--published", "adalora2023", "--format", form)


def test_the_note_says_whose_numbers_they_are_and_how_they_were_measured(ours, table):
    assert table("runs", "--published", "adalora2023").note("adalora2023: ") == (
        "published by others under another protocol, in per cent as printed; never marked, and in no average or "
        'rank. Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023, '
        "arXiv 2303.10512, table 1. DeBERTaV3-base, validation split of GLUE, mean of 5 runs, parameters without the "
        "head; stsb is “correlation”, the paper does not say which."
    )


def test_numbers_are_printed_as_the_paper_prints_them(store, table):
    store.add("lora", 0, 0.9, "mnli")
    store.add("lora", 0, 0.9, "qqp")
    out = table("runs", "--published", "adalora2023", "--published", "svft2024")
    assert "*90.66*" in out.column("mnli"), "matched, not 90.66/90.70"
    assert "*90.4*" in out.column("qqp"), "VeRA, without a digit that the paper has not"


def test_latex_and_html_mark_them_too(ours, table):
    latex = table("runs", "--published", "lora2022", "--format", "latex")
    assert "\\emph{published by others, another protocol: lora2022}} \\\\\n\\textit{full fine-tuning" in latex
    assert "\\textit{LoRA, RoBERTa-base} & \\textit{86.6} & \\textit{91.5} &  &  & \\textit{0.8M} &" in latex
    html = table("runs", "--published", "lora2022", "--format", "html")
    assert '<tbody class="foreign">' in html and "<span>86.6</span>" in html


def test_csv_names_the_set_and_has_shares_like_ours(ours, table):
    lines = list(csv.DictReader(table("runs", "--published", "adalora2023", "--format", "csv").splitlines()))
    assert {line["published"] for line in lines if line["variant"] in ("lora", "sora")} == {""}
    (line,) = [each for each in lines if each["variant"] == "LoRA r=2" and each["task"] == "stsb"]
    assert line["published"] == "adalora2023" and line["metric"] == "correlation"
    assert (line["mean"], line["trainable_start"], line["n"], line["sd"]) == ("0.9168", "330000", "", "")


def test_what_a_paper_quotes_from_another_is_called_so(ours, table):
    labels = table("runs", "--published", "aflora2024").labels
    assert "*SoRA r=4 (quoted there)*" in labels and "*AFLoRA r=4*" in labels


def test_a_task_with_another_metric_is_left_out_and_named(store, table):
    store.add("lora", 0, 0.9, "rte")
    store.add("lora", 0, 0.9, "mrpc", metric__name="f1")
    out = table("runs", "--published", "adalora2023")
    assert set(out.column("mrpc")[1:]) == {""}
    assert out.note("adalora2023: ").endswith("; mrpc is left out, the paper has accuracy.")


def test_a_set_without_a_number_for_the_table_is_an_error(store, capsys):
    store.add("lora", 0)
    assert cli.main(["table", "runs", "--published", "increlora2023"]) == 2
    assert capsys.readouterr() == (
        "",
        "analysis: --published: increlora2023 has no number for movie; it has sst2 (accuracy), rte (accuracy)\n",
    )


def test_an_unknown_set_is_refused_with_those_that_there_are(store, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["table", "runs", "--published", "list"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in published.names())


def test_help_lists_the_sets(capsys):
    with pytest.raises(SystemExit):
        cli.main(["table", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in published.names())


@pytest.mark.parametrize("name", published.names())
def test_a_set_agrees_with_the_averages_that_its_paper_prints(name):
    raw = yaml.load((published.FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert raw["averages"] in ("both", "first")
    for row, read in zip(raw["rows"], published.load(name).rows, strict=True):
        numbers = {task: [float(text) for text in values] for task, values in read.values.items()}
        assert all(0 < value < 100 for values in numbers.values() for value in values)
        if "average" in row:
            used = [statistics.fmean(own) if raw["averages"] == "both" else own[0] for own in numbers.values()]
            assert len(used) == len(raw["metrics"])
            # Half of the last digit of the average, and of the numbers that it is over.
            assert statistics.fmean(used) == pytest.approx(float(row["average"]), abs=0.0101)


@pytest.mark.parametrize("name", published.names())
def test_a_set_says_where_it_is_from_and_names_known_tasks_and_metrics(name):
    paper = published.load(name)
    assert paper.source and paper.protocol and paper.rows
    known = {"accuracy", "f1", "matthews", "pearson", "spearman", "correlation"}
    for task, names in paper.metrics.items():
        assert task in ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")
        assert set(names) <= known | set(AVERAGED["mnli"])
        assert all(len(row.values.get(task, ())) <= len(names) for row in paper.rows)
