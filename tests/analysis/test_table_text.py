"""The exact text of a small table in each format: two variants, two tasks, all that can go wrong once."""

from __future__ import annotations

import pytest

from analysis import cli

MARKDOWN = """\
| variant     | movie accuracy, best on validation | opinion pearson, best on validation | trainable | effective | head | memory MiB | peak RSS MiB | train s | tokens/s |
| :---------- | ---------------------------------: | ----------------------------------: | --------: | --------: | ---: | ---------: | -----------: | ------: | -------: |
| full        |                     78.8 ± 1.2 (3) |                                     |     22.7M |     22.7M |  770 |      146.0 |        700.0 |    12.5 |     4321 |
| lora rank=4 |                   80.33 ± 0.58 (3) |                           61.00 (1) |    165.9k |    165.9k |  770 |      146.0 |        700.0 |    12.5 |     4321 |
| lora rank=8 |                      **82.50** (1) |                       **64.00** (1) |    331.8k |    331.8k |  770 |      146.0 |        700.0 |    12.5 |     4321 |

- Cells: mean ± sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs; a cell with one run has no ±.
- ×100: accuracy, pearson; bold: the best mean of its column and its ties.
- Best checkpoint, chosen and reported on validation, protocol dev.
- Costs: means over the runs and tasks of a row. trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither. memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.
- Within a column, from row to row, differ besides the variant: optim.lr.
- Code: commit 0123456789.
- Failed: full on opinion, seed 0: out_of_memory \\| 3 GiB
- Blank on opinion, 1 run failed: full
- Not used, can't be trusted: runs/foreign/record.json: version: None, this is version 1
"""  # noqa: E501

CSV = """\
variant,settings,model,task,metric,checkpoint,split,protocol,higher_is_better,n,failed,mean,sd,seeds,trainable_start,effective_end,head,memory_bytes,peak_rss_bytes,train_seconds,tokens_per_second
full,,minilm,movie,accuracy,best,validation,dev,true,3,0,0.788,0.012124355652982153,0 1 2,22713216,22713216,770,153092096,734003200,12.5,4321.4
full,,minilm,opinion,,,,,,0,1,,,,,,,,,,
lora,rank=4,minilm,movie,accuracy,best,validation,dev,true,3,0,0.8033333333333333,0.005773502691896263,0 1 2,165888,165888,770,153092096,734003200,12.5,4321.4
lora,rank=4,minilm,opinion,pearson,best,validation,dev,true,1,0,0.61,,0,165888,165888,770,153092096,734003200,12.5,4321.4
lora,rank=8,minilm,movie,accuracy,best,validation,dev,true,1,0,0.825,,0,331776,331776,770,153092096,734003200,12.5,4321.4
lora,rank=8,minilm,opinion,pearson,best,validation,dev,true,1,0,0.64,,0,331776,331776,770,153092096,734003200,12.5,4321.4
"""  # noqa: E501

LATEX = r"""% needs \usepackage{booktabs}
\begin{table}
\centering
\begin{tabular}{lrrrrrrrrr}
\toprule
variant & \shortstack[r]{movie \\ accuracy \\ best on validation} & \shortstack[r]{opinion \\ pearson \\ best on validation} & trainable & effective & head & memory MiB & peak RSS MiB & train s & tokens/s \\
\midrule
full & 78.8 $\pm$ 1.2 (3) &  & 22.7M & 22.7M & 770 & 146.0 & 700.0 & 12.5 & 4321 \\
lora rank=4 & 80.33 $\pm$ 0.58 (3) & 61.00 (1) & 165.9k & 165.9k & 770 & 146.0 & 700.0 & 12.5 & 4321 \\
lora rank=8 & \textbf{82.50} (1) & \textbf{64.00} (1) & 331.8k & 331.8k & 770 & 146.0 & 700.0 & 12.5 & 4321 \\
\bottomrule
\end{tabular}

\medskip
\begin{minipage}{\linewidth}\footnotesize
Cells: mean $\pm$ sd (n): sd is the standard deviation over seeds (ddof 1), n the number of runs; a cell with one run has no $\pm$.\par
$\times$100: accuracy, pearson; bold: the best mean of its column and its ties.\par
Best checkpoint, chosen and reported on validation, protocol dev.\par
Costs: means over the runs and tasks of a row. trainable: parameters of the adapter at the start; effective: what is not switched off at the end; the head is in neither. memory: weights, gradients, optimizer state and saved activations; peak RSS: the whole process.\par
Within a column, from row to row, differ besides the variant: optim.lr.\par
Code: commit 0123456789.\par
Failed: full on opinion, seed 0: out\_of\_memory \textbar{} 3 GiB\par
Blank on opinion, 1 run failed: full\par
Not used, can't be trusted: runs/foreign/record.json: version: None, this is version 1\par
\end{minipage}
\end{table}
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


def test_csv(study, capsys):
    assert cli.main(["table", "runs", "--format", "csv"]) == 0
    output = capsys.readouterr()
    assert output.out == CSV
    assert output.err == PROBLEMS
