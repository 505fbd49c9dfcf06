"""The exact text of a small table in each format: two variants, two tasks, all that can go wrong once."""

from __future__ import annotations

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
- Rank: the mean over tasks of the rank of a row's mean, 1 for the best, ties share theirs; rows without runs on every task have none.
- Best checkpoint, chosen and reported on validation, protocol dev.
- Costs: means over the runs and tasks of a row. Trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither; file: adapter and head on disk; memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.
- Within a column, from row to row, differ besides the variant: optim.lr.
- Code: commit 0123456789.
- Failed: full on opinion, seed 0: out_of_memory \\| 3 GiB
- Blank on opinion, 1 run failed: full
- Not used, can't be trusted: runs/foreign/record.json: version: None, this is version 1
"""  # noqa: E501

CSV = """\
variant,settings,budget,published,model,task,metric,checkpoint,split,protocol,higher_is_better,n,failed,mean,sd,seeds,average,average_sd,average_n,average_rank,trainable_start,effective_end,head,file_bytes,memory_bytes,weights_bytes,gradients_bytes,optimizer_bytes,activations_bytes,peak_rss_bytes,cuda_train_allocated_bytes,cuda_train_reserved_bytes,cuda_eval_allocated_bytes,cuda_eval_reserved_bytes,train_seconds,tokens_per_second
full,,,,minilm,movie,accuracy,best,validation,dev,true,3,0,0.788,0.01212435565298215,0 1 2,,,,,22713216,22713216,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4
full,,,,minilm,opinion,,,,,,0,1,,,,,,,,,,,,,,,,,,,,,,,
lora,rank=4,,,minilm,movie,accuracy,best,validation,dev,true,3,0,0.8033333333333333,0.005773502691896263,0 1 2,0.7066666666666667,,,2,165888,165888,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4
lora,rank=4,,,minilm,opinion,pearson,best,validation,dev,true,1,0,0.61,,0,0.7066666666666667,,,2,165888,165888,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4
lora,rank=8,,,minilm,movie,accuracy,best,validation,dev,true,1,0,0.825,,0,0.7324999999999999,,1,1,331776,331776,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4
lora,rank=8,,,minilm,opinion,pearson,best,validation,dev,true,1,0,0.64,,0,0.7324999999999999,,1,1,331776,331776,770,1572864,153092096,94371840,2097152,4194304,52428800,734003200,,,,,12.5,4321.4
"""  # noqa: E501

LATEX = r"""% needs \usepackage{booktabs}
\begin{table}
\centering
\begin{tabular}{lrrrrrrrrrrrr}
\toprule
variant & \shortstack[r]{movie \\ accuracy \\ best on validation} & \shortstack[r]{opinion \\ pearson \\ best on validation} & average & rank & trainable & effective & head & file MiB & memory MiB & peak RSS MiB & train s & tokens/s \\
\midrule
full & 78.8 $\pm$ 1.2 (3) &  &  &  & 22.7M & 22.7M & 770 & 1.50 & 146.0 & 700.0 & 12.5 & 4321 \\
lora rank=4 & \underline{80.33} $\pm$ 0.58 (3) & \underline{61.00} (1) & \underline{70.67} & \underline{2.00} & 165.9k & 165.9k & 770 & 1.50 & 146.0 & 700.0 & 12.5 & 4321 \\
lora rank=8 & \textbf{82.50} (1) & \textbf{64.00} (1) & \textbf{73.25} (1) & \textbf{1.00} & 331.8k & 331.8k & 770 & 1.50 & 146.0 & 700.0 & 12.5 & 4321 \\
\bottomrule
\end{tabular}

\medskip
\begin{minipage}{\linewidth}\footnotesize
Cells: mean $\pm$ sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs; a cell with one run has no $\pm$.\par
$\times$100: accuracy, pearson; bold: the best mean of its column and its ties; underlined: the second best and its ties.\par
Average: the mean over the 2 tasks; without (n) where the tasks of a row have different seeds; rows without runs on every task have none.\par
Rank: the mean over tasks of the rank of a row's mean, 1 for the best, ties share theirs; rows without runs on every task have none.\par
Best checkpoint, chosen and reported on validation, protocol dev.\par
Costs: means over the runs and tasks of a row. Trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither; file: adapter and head on disk; memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.\par
Within a column, from row to row, differ besides the variant: optim.lr.\par
Code: commit 0123456789.\par
Failed: full on opinion, seed 0: out\_of\_memory \textbar{} 3 GiB\par
Blank on opinion, 1 run failed: full\par
Not used, can't be trusted: runs/foreign/record.json: version: None, this is version 1\par
\end{minipage}
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
<li>Rank: the mean over tasks of the rank of a row&#39;s mean, 1 for the best, ties share theirs; rows without runs on every task have none.</li>
<li>Best checkpoint, chosen and reported on validation, protocol dev.</li>
<li>Costs: means over the runs and tasks of a row. Trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither; file: adapter and head on disk; memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.</li>
<li>Within a column, from row to row, differ besides the variant: optim.lr.</li>
<li>Code: commit 0123456789.</li>
<li class="problem">Failed: full on opinion, seed 0: out_of_memory | 3 GiB</li>
<li class="problem">Blank on opinion, 1 run failed: full</li>
<li class="problem">Not used, can&#39;t be trusted: runs/foreign/record.json: version: None, this is version 1</li>
</ul>
</body>
</html>
"""  # noqa: E501

PROBLEMS = """\
Failed: full on opinion, seed 0: out_of_memory | 3 GiB
Blank on opinion, 1 run failed: full
Not used, can't be trusted: runs/foreign/record.json: version: None, this is version 1
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
