"""The exact text of a small table in each format: two variants, two tasks, all that can go wrong once."""

from __future__ import annotations

import csv
import re

import pytest

from analysis.commands import cli

MARKDOWN = """\
| variant     | movie accuracy, best on validation | opinion pearson, best on validation |       average |     rank | trainable | effective | head | file MiB | memory MiB | peak RSS MiB | train s | tokens/s |
| :---------- | ---------------------------------: | ----------------------------------: | ------------: | -------: | --------: | --------: | ---: | -------: | ---------: | -----------: | ------: | -------: |
| full        |                     78.8 ± 1.2 (3) |                                     |               |          |     22.7M |     22.7M |  770 |     1.50 |      146.0 |        700.0 |    12.5 |     4321 |
| lora rank=4 |                   80.33 ± 0.58 (3) |                           61.00 (1) |         70.67 |     2.00 |    165.9k |    165.9k |  770 |     1.50 |      146.0 |        700.0 |    12.5 |     4321 |
| lora rank=8 |                      **82.50** (1) |                       **64.00** (1) | **73.25** (1) | **1.00** |    331.8k |    331.8k |  770 |     1.50 |      146.0 |        700.0 |    12.5 |     4321 |

- Cells: mean ± sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs; a cell with one run has no ±.
- ×100: accuracy, pearson; bold: the best mean of its column and its ties.
- Average: the mean over the 2 tasks; without (n) where the tasks of a row have different seeds; rows without runs on every task have none.
- Rank: the mean over tasks of the row's rank by its mean; 1 is the best, ties share theirs; rows without runs on every task have none.
- Best checkpoint, chosen and reported on validation, protocol dev.
- Costs: means over the runs and tasks of a row. Trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither; file: adapter and head on disk; memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.
- Settings that differ between the rows of a column, besides the variant: optim.lr.
- Code: commit 0123456789.
- Failed: full on opinion, seed 0: out_of_memory \\| 3 GiB
- Blank on opinion, 1 run failed: full
- Not used, can't be trusted: runs/foreign/record.json: version: None, allowed: a whole number ≥ 1
"""  # noqa: E501

CSV = """\
variant,settings,budget,published,model,task,metric,checkpoint,split,protocol,higher_is_better,n,failed,mean,sd,seeds,average,average_sd,average_n,average_rank,trainable_start,effective_end,head,file_bytes,memory_bytes,weights_bytes,gradients_bytes,optimizer_bytes,activations_bytes,peak_rss_bytes,cuda_train_allocated_bytes,cuda_train_reserved_bytes,cuda_eval_allocated_bytes,cuda_eval_reserved_bytes,train_seconds,tokens_per_second,retention_before,retention_after
full,,,,minilm,movie,accuracy,best,validation,dev,true,3,0,0.788,0.01212435565298215,0 1 2,,,,,22713216,22713216,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4,,
full,,,,minilm,opinion,,,,,,0,1,,,,,,,,,,,,,,,,,,,,,,,,,
lora,rank=4,,,minilm,movie,accuracy,best,validation,dev,true,3,0,0.8033333333333333,0.005773502691896263,0 1 2,0.7066666666666667,,,2,165888,165888,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4,,
lora,rank=4,,,minilm,opinion,pearson,best,validation,dev,true,1,0,0.61,,0,0.7066666666666667,,,2,165888,165888,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4,,
lora,rank=8,,,minilm,movie,accuracy,best,validation,dev,true,1,0,0.825,,0,0.7324999999999999,,1,1,331776,331776,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4,,
lora,rank=8,,,minilm,opinion,pearson,best,validation,dev,true,1,0,0.64,,0,0.7324999999999999,,1,1,331776,331776,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4,,
"""  # noqa: E501

LATEX = r"""% needs \usepackage{booktabs,graphicx}
\begin{table}
\centering
\caption{Results on movie, opinion.}
\label{tab:results}
\resizebox*{!}{\ifdim\totalheight>0.9\textheight 0.9\textheight\else\totalheight\fi}{%
\begin{minipage}{\linewidth}\centering
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{lrrrrrrrrrrrr}
\toprule
variant & \shortstack[r]{movie \\ accuracy \\ best on validation} & \shortstack[r]{opinion \\ pearson \\ best on validation} & average & rank & trainable & effective & head & file MiB & memory MiB & peak RSS MiB & train s & tokens/s \\
\midrule
full & 78.8 $\pm$ 1.2 (3) &  &  &  & 22.7M & 22.7M & 770 & 1.50 & 146.0 & 700.0 & 12.5 & 4321 \\
lora rank=4 & \underline{80.33} $\pm$ 0.58 (3) & \underline{61.00} (1) & \underline{70.67} & \underline{2.00} & 165.9k & 165.9k & 770 & 1.50 & 146.0 & 700.0 & 12.5 & 4321 \\
lora rank=8 & \textbf{82.50} (1) & \textbf{64.00} (1) & \textbf{73.25} (1) & \textbf{1.00} & 331.8k & 331.8k & 770 & 1.50 & 146.0 & 700.0 & 12.5 & 4321 \\
\bottomrule
\end{tabular}}

\medskip
\raggedright\footnotesize
Cells: mean $\pm$ sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs; a cell with one run has no $\pm$.\par
$\times$100: accuracy, pearson; bold: the best mean of its column and its ties; underlined: the second best and its ties.\par
Average: the mean over the 2 tasks; without (n) where the tasks of a row have different seeds; rows without runs on every task have none.\par
Rank: the mean over tasks of the row's rank by its mean; 1 is the best, ties share theirs; rows without runs on every task have none.\par
Best checkpoint, chosen and reported on validation, protocol dev.\par
Costs: means over the runs and tasks of a row. Trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither; file: adapter and head on disk; memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.\par
Settings that differ between the rows of a column, besides the variant: optim.lr.\par
Code: commit 0123456789.\par
Failed: full on opinion, seed 0: out\_of\_memory \textbar{} 3 GiB\par
Blank on opinion, 1 run failed: full\par
Not used, can't be trusted: runs/foreign/record.json: version: None, allowed: a whole number $\geq$ 1\par
\end{minipage}}
\end{table}
"""  # noqa: E501

HTML = """\
<body>
<h1>Results</h1>
<div class="wide">
<table class="results">
<thead>
<tr><th scope="col">variant</th><th scope="col">movie <span>accuracy</span> <small>best on validation</small></th><th scope="col">opinion <span>pearson</span> <small>best on validation</small></th><th scope="col">average</th><th scope="col">rank</th><th scope="col">trainable</th><th scope="col">effective</th><th scope="col">head</th><th scope="col">file MiB</th><th scope="col">memory MiB</th><th scope="col">peak RSS MiB</th><th scope="col">train s</th><th scope="col">tokens/s</th></tr>
</thead>
<tbody>
<tr><th scope="row">full</th><td><span>78.8</span> ± 1.2 <small>(3)</small></td><td></td><td></td><td></td><td><span>22.7M</span></td><td><span>22.7M</span></td><td><span>770</span></td><td><span>1.50</span></td><td><span>146.0</span></td><td><span>700.0</span></td><td><span>12.5</span></td><td><span>4321</span></td></tr>
<tr><th scope="row">lora rank=4</th><td class="second"><span>80.33</span> ± 0.58 <small>(3)</small></td><td class="second"><span>61.00</span> <small>(1)</small></td><td class="second"><span>70.67</span></td><td class="second"><span>2.00</span></td><td><span>165.9k</span></td><td><span>165.9k</span></td><td><span>770</span></td><td><span>1.50</span></td><td><span>146.0</span></td><td><span>700.0</span></td><td><span>12.5</span></td><td><span>4321</span></td></tr>
<tr><th scope="row">lora rank=8</th><td class="best"><span>82.50</span> <small>(1)</small></td><td class="best"><span>64.00</span> <small>(1)</small></td><td class="best"><span>73.25</span> <small>(1)</small></td><td class="best"><span>1.00</span></td><td><span>331.8k</span></td><td><span>331.8k</span></td><td><span>770</span></td><td><span>1.50</span></td><td><span>146.0</span></td><td><span>700.0</span></td><td><span>12.5</span></td><td><span>4321</span></td></tr>
</tbody>
</table>
</div>
<ul class="notes">
<li>Cells: mean ± sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs; a cell with one run has no ±.</li>
<li>×100: accuracy, pearson; bold: the best mean of its column and its ties; underlined: the second best and its ties.</li>
<li>Average: the mean over the 2 tasks; without (n) where the tasks of a row have different seeds; rows without runs on every task have none.</li>
<li>Rank: the mean over tasks of the row&#39;s rank by its mean; 1 is the best, ties share theirs; rows without runs on every task have none.</li>
<li>Best checkpoint, chosen and reported on validation, protocol dev.</li>
<li>Costs: means over the runs and tasks of a row. Trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither; file: adapter and head on disk; memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.</li>
<li>Settings that differ between the rows of a column, besides the variant: optim.lr.</li>
<li>Code: commit 0123456789.</li>
<li class="problem">Failed: full on opinion, seed 0: out_of_memory | 3 GiB</li>
<li class="problem">Blank on opinion, 1 run failed: full</li>
<li class="problem">Not used, can&#39;t be trusted: runs/foreign/record.json: version: None, allowed: a whole number ≥ 1</li>
</ul>
</body>
</html>
"""  # noqa: E501

PROBLEMS = """\
Failed: full on opinion, seed 0: out_of_memory | 3 GiB
Blank on opinion, 1 run failed: full
Not used, can't be trusted: runs/foreign/record.json: version: None, allowed: a whole number ≥ 1
"""


@pytest.fixture
def study(store):
    full = {
        "config": {"optim.lr": 2e-5},
        "params__adapter_start": 22_713_216,
        "params__effective": 22_713_216,
    }
    for seed, value in enumerate((0.781, 0.781, 0.802)):
        store.add("full", seed, value, **full)
    store.add("full", 0, task="opinion", error="out_of_memory | 3 GiB", config={"optim.lr": 2e-5})
    four = {"config": {"variant.rank": 4}, "params__adapter_start": 165_888, "params__effective": 165_888}
    for seed, value in enumerate((0.8, 0.8, 0.81)):
        store.add("lora", seed, value, **four)
    store.add("lora", 0, 0.61, "opinion", metric__name="pearson", **four)
    store.add("lora", 0, 0.825)
    store.add("lora", 0, 0.64, "opinion", metric__name="pearson")
    store.raw("foreign", '{"epoch": 3, "loss": 0.7}')


def test_markdown(study, table):
    assert table("runs") == MARKDOWN


def test_latex(study, table):
    assert table("runs", "--format", "latex") == LATEX


def test_html(study, table):
    page = table("runs", "--format", "html")
    assert page[page.index("<body>") :] == HTML
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n')
    assert not re.search(r"https?:|<script|<link|<img|@import|url\(", page), "nothing from elsewhere"


def test_csv(study, capsys):
    assert cli.main(["table", "runs", "--format", "csv"]) == 0
    output = capsys.readouterr()
    assert output.out == CSV
    assert output.err == PROBLEMS


def test_markdown_has_two_names(study, table):
    assert table("runs", "--format", "markdown") == MARKDOWN


HEADS = ["variant", "movie accuracy, best on validation"]


@pytest.fixture
def sizes(store):
    """Three variants that differ in score, parameters and time; one of them without a run on the second task."""
    for place, (variant, value) in enumerate((("a", 0.7), ("b", 0.9), ("c", 0.8))):
        changes = {"params__adapter_start": 1000 * (3 - place), "time__tokens_per_second": 10.0 * place}
        store.add(variant, 0, value, **changes)
        if variant != "c":
            store.add(variant, 0, value / 2, "opinion", metric__name="rmse", metric__higher_is_better=False, **changes)


def test_columns_are_chosen_and_in_the_order_that_was_asked_for(sizes, table):
    out = table("runs", "--columns", "tokens/s,rank,trainable")
    assert out.cells[0][3:] == ["tokens/s", "rank", "trainable"]
    assert out.column("trainable") == ["3.0k", "2.0k", "1.0k"]
    assert not [note for note in out.notes if note.startswith(("Average", "No average"))]
    assert table("runs", "--columns", "none").cells[0] == [*HEADS, "opinion rmse, best on validation"]
    assert "& tokens/s & rank & trainable" in table("runs", "--columns", "tokens/s,rank,trainable", "--format", "latex")


@pytest.mark.parametrize(
    ("name", "order"),
    [("movie", "bca"), ("opinion", "abc"), ("trainable", "cba"), ("tokens/s", "cba"), ("rank", "abc")],
)
def test_rows_are_sorted_with_the_best_first_and_blanks_last(sizes, table, name, order):
    assert "".join(table("runs", "--sort", name).labels) == order
    lines = list(csv.DictReader(table("runs", "--sort", name, "--format", "csv").splitlines()))
    assert "".join(dict.fromkeys(line["variant"] for line in lines)) == order


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--sort", "mnli"], "--sort: 'mnli', allowed: movie, opinion, average, rank, trainable, effective, "),
        (["--sort", "average"], "--sort: 'average': no row has it"),
        (["--columns", "rank", "--format", "csv"], "--columns: csv has all of them; allowed: md, latex, html"),
        (["--columns", "rank", "--memory"], "--memory: with --columns, which names all columns"),
        (["--metric", "mae"], "--metric: 'mae', the records have: accuracy, rmse"),
    ],
)
def test_what_a_table_can_not_have_is_one_line(sizes, capsys, arguments, error):
    assert cli.main(["table", "runs", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"analysis: {error}")


@pytest.mark.parametrize("names", ["rank,speed", "rank,rank", "", "none,rank"])
def test_a_column_that_is_none_lists_those_that_are(sizes, capsys, names):
    with pytest.raises(SystemExit):
        cli.main(["table", "runs", "--columns", names])
    assert "allowed: none, or of average, rank, trainable, effective, head, file, memory" in capsys.readouterr().err


def test_another_metric_of_the_records(store, table):
    for variant, value in (("a", 0.7), ("b", 0.8)):
        other = {"metrics__accuracy": value, "metrics__f1": 1 - value, "metrics__extra.rmse": value}
        store.add(variant, 0, value, **other)
        store.add(variant, 0, value, "opinion", metrics__accuracy=value)
    out = table("runs", "--metric", "f1")
    assert out.cells[0][:2] == ["variant", "movie f1, best on validation"]
    assert out.column("movie") == ["**30.00** (1)", "20.00 (1)"]
    assert out.note("Left out, no f1 in the record: ") == "2 runs on opinion (a, b)"
    assert out.note("Metric: f1, ").startswith("as asked for, instead of each task's own")
    worse = table("runs", "--metric", "extra.rmse")
    assert worse.cells[0][1] == "movie extra.rmse, best on extra"
    assert worse.column("movie") == ["**0.7000** (1)", "0.8000 (1)"], "lower is better"


def test_of_another_metric_every_task_counts_with_what_its_column_shows(store, table):
    for seed in (0, 1):
        values = {"metrics__accuracy": 0.8, "metrics__f1": 0.6}
        store.add("a", seed, 0.8, "mrpc", **values)
        store.add("a", seed, 0.8, "movie", **values)
    assert table("runs").column("average") == ["75.00 ± 0.00 (2)"], "of mrpc GLUE takes the mean of both metrics"
    assert table("runs", "--metric", "f1").column("average") == ["60.00 ± 0.00 (2)"]


def test_a_latex_table_has_the_caption_and_label_that_were_asked_for(sizes, table):
    text = table("runs", "--format", "latex", "--caption", "Movie & opinion", "--label", "tab:movie")
    assert "\\caption{Movie \\& opinion}\n\\label{tab:movie}\n" in text


def test_labels_leave_out_the_commonest_value_and_are_never_alike(store, table):
    plain = {"variant.rank": 8, "variant.alpha": 16, "variant.dropout": 0.0}
    for change in ({}, {"variant.rank": 4}, {"variant.alpha": 8}, {"variant.dropout": 0.1}):
        store.add("lora", 0, config=plain | change)
    out = table("runs")
    assert sorted(out.labels) == ["lora", "lora alpha=8", "lora dropout=0.1", "lora rank=4"]
    assert out.note("Unless a label of lora says otherwise: ") == "alpha=16, dropout=0, rank=8."
    settings = {line["settings"] for line in csv.DictReader(table("runs", "--format", "csv").splitlines())}
    assert "rank=4 alpha=16 dropout=0" in settings, "csv has all of them"


def test_of_one_setting_every_label_says_its_value(store, table):
    for rank in (4, 8):
        store.add("lora", 0, config={"variant.rank": rank})
    assert table("runs").labels == ["lora rank=4", "lora rank=8"]
