"""The exact text of a small comparison in each format."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from analysis.commands import cli

pytestmark = pytest.mark.slow

MARKDOWN = """\
- lora rank=4 is better than head on movie by 15.0 ± 1.5 points (n=3; paired-t 95 % interval 11.3 to 18.7; Holm p 0.0033); over test examples too (bootstrap 10.8 to 19.5).
- On opinion the data don't say: lora rank=4 − head = -3.00 points with one paired seed (n=1).
- lora rank=4 against head, 2 tasks: better on 1, undecided on 1.

Over seeds:

| task    |   metric | lora rank=4 |  head | lora rank=4 − head |  sd |   n | 95 % interval | shown from | paired t p (Holm) | sign-flip p (Holm) | its floor |  g_z |
| :------ | -------: | ----------: | ----: | -----------------: | --: | --: | ------------: | ---------: | ----------------: | -----------------: | --------: | ---: |
| movie   | accuracy |        91.0 |  76.0 |               15.0 | 1.5 |   3 |  11.3 to 18.7 |        3.7 |   0.0033 (0.0033) |    can't be < 0.05 |    0.2500 | 5.64 |
| opinion |  pearson |       61.00 | 64.00 |              -3.00 |     |   1 |               |            |                   |                    |           |      |

Over test examples:

| task  | examples |   seeds | lora rank=4 − head | bootstrap 95 % interval |                              McNemar by seed |
| :---- | -------: | ------: | -----------------: | ----------------------: | -------------------------------------------: |
| movie |      200 | 0, 1, 2 |               15.0 |            10.8 to 19.5 | 0: 46:16 p 0.0002 (0.0004); 1: 43:16 p 0.0006 (0.0006); 2: 46:13 p 2e-05 (6e-05) |

- Average ranks over 2 tasks (movie, opinion), 1 the best: lora rank=4 (1.50), head (1.50).
- No Friedman test, no Nemenyi test, no critical-difference figure: a test of ranks needs 5 tasks that all rows have and 3 rows; here: 2 and 2.

- ×100, differences in points: accuracy, pearson.
- ±, sd: standard deviation of the paired differences over seeds (ddof 1); n: paired seeds; p in brackets: by Holm for the family, 1 test of its kind.
- Verdict: better, where Holm's p of the paired t test is below 0.05; equal, where every paired seed has the same value; else the data don't say. g_z: mean over sd of the differences, Hedges-corrected.
- Shown from: the smallest mean difference that these seeds can distinguish from 0 at this sd.
- With one paired seed nothing is known about the spread over seeds: no ±, no interval, no p over seeds.
- Over test examples: 95 % percentile bootstrap, 1,000 resamples, of the mean difference over the seeds at hand, the trained models as they are. McNemar by seed: examples that the first alone : the second alone gets right, exact p, in brackets by Holm for 3 tests; it is about two trained models.
- n=3: the sign-flip p can't be below 2/2^3 = 0.2500, so no permutation test over these seeds can reach 0.05.
- Best checkpoint, chosen and reported on validation, protocol dev.
- Besides the variant and what the labels say, lora rank=4 and head differ in: optim.lr.
- Code: commit 0123456789.
- Unequal budgets: lora rank=4 and head have 165.9k and 0 effective parameters, over 1 % apart (movie, opinion).
- Unpaired, not used, lora rank=4 and head on movie: lora rank=4 seed 3.
- Not compared over test examples, lora rank=4 on opinion seed 0: no predictions.parquet in its folder.
- Not used, can't be trusted: runs/foreign/record.json: version: None, allowed: a whole number ≥ 1
"""  # noqa: E501

CSV = """\
a,b,task,metric,higher_is_better,level,seeds,n,mean_a,mean_b,difference,sd,low,high,test,p,p_holm,p_flip,p_flip_holm,flip_floor,g_z,smallest_shown,a_alone,b_alone,verdict
lora rank=4,head,movie,accuracy,true,seeds,0 1 2,3,0.91,0.76,0.15000000000000002,0.015000000000000013,0.11273793432374504,0.187262065676255,paired t,0.0033167587223568657,0.0033167587223568657,0.25,0.25,0.25,5.64189583547756,0.03726206567625496,,,better
lora rank=4,head,movie,accuracy,true,examples,0 1 2,200,,,0.15000000000000002,,0.1082916666666667,0.19499999999999998,,,,,,,,,,,
lora rank=4,head,movie,accuracy,true,examples of one seed,0,200,,,0.15000000000000002,,0.07487500000000007,0.22012499999999996,McNemar,0.00017632711255144299,0.00035265422510288597,,,,,,46,16,
lora rank=4,head,movie,accuracy,true,examples of one seed,1,200,,,0.135,,0.06000000000000005,0.20500000000000007,McNemar,0.0005843646280443461,0.0005843646280443461,,,,,,43,16,
lora rank=4,head,movie,accuracy,true,examples of one seed,2,200,,,0.16500000000000004,,0.09499999999999997,0.24,McNemar,1.9167786796225883e-05,5.750336038867765e-05,,,,,,46,13,
lora rank=4,head,opinion,pearson,true,seeds,0,1,0.61,0.64,-0.030000000000000027,,,,,,,,,,,,,,undecided
"""  # noqa: E501

PROBLEMS = """\
Unequal budgets: lora rank=4 and head have 165.9k and 0 effective parameters, over 1 % apart (movie, opinion).
Unpaired, not used, lora rank=4 and head on movie: lora rank=4 seed 3.
Not compared over test examples, lora rank=4 on opinion seed 0: no predictions.parquet in its folder.
Not used, can't be trusted: runs/foreign/record.json: version: None, allowed: a whole number ≥ 1
"""


@pytest.fixture
def two(study, store):
    """lora with rank 4 and head on two tasks: one with three pairs and one run alone, one with a single pair."""
    four = {"config": {"variant.rank": 4}, "params__effective": 165_888}
    for seed, (lora, head) in enumerate(((180, 150), (182, 155), (184, 151))):
        study.right("lora", seed, lora, **four)
        study.right("head", seed, head, config={"optim.lr": 0.01}, params__effective=0)
    study.right("lora", 3, 181, **four)
    study.right("lora", 0, 160, config={"variant.rank": 8})
    store.add("lora", 0, 0.61, "opinion", metric__name="pearson", **four)
    store.add("head", 0, 0.64, "opinion", metric__name="pearson", config={"optim.lr": 0.01}, params__effective=0)
    store.raw("foreign", "{}")


def command(*options: str) -> list[str]:
    return ["compare", "lora rank=4", "head", "runs", "--resamples", "1000", *options]


def test_markdown(two, capsys):
    assert cli.main(command()) == 0
    assert capsys.readouterr().out == MARKDOWN


def test_csv(two, capsys):
    assert cli.main(command("--format", "csv")) == 0
    output = capsys.readouterr()
    found, expected = (list(csv.reader(text.splitlines())) for text in (output.out, CSV))
    assert [list(map(_number, line)) for line in found] == [
        [pytest.approx(cell, rel=1e-12) if isinstance(cell, float) else cell for cell in map(_number, line)]
        for line in expected
    ]
    assert output.err == PROBLEMS


def _number(cell: str) -> float | str:
    """The last digit of a p may be another on another processor."""
    try:
        return float(cell)
    except ValueError:
        return cell


def test_json_has_what_the_others_have(two, capsys):
    assert cli.main(command("--format", "json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["verdicts", "tests", "over_tasks_and_seeds", "not_compared", "ranks", "notes"]
    assert [f"- {verdict['text']}" for verdict in found["verdicts"]] == MARKDOWN.splitlines()[:2]
    assert [note["text"] for note in found["notes"] if note["problem"]] == PROBLEMS.splitlines()
    head, *body = CSV.splitlines()
    assert [list(line) for line in found["tests"]] == [head.split(",")] * len(body)


@pytest.mark.parametrize("name, form", [("c.csv", "csv"), ("c.json", "json"), ("c.md", "md"), ("c.txt", "md")])
def test_the_ending_of_the_file_says_the_format(two, capsys, name, form):
    assert cli.main(command("--output", name)) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(command("--format", form)) == 0
    assert Path(name).read_text(encoding="utf-8") == capsys.readouterr().out


def test_names_are_shown_letter_by_letter(store, capsys):
    for seed in (0, 1):
        store.add("a|b*", seed, 0.8 + seed / 50, "_task_")
        store.add("低秩\n<b>", seed, 0.7, "_task_")
    for form, name in (("md", "a\\|b\\*"), ("csv", "a|b*"), ("json", "a|b*")):
        assert cli.main(["compare", "a|b*", "低秩\n<b>", "runs", "--format", form]) == 0
        out = capsys.readouterr().out
        assert name in out and "低秩" in out
        if form == "md":
            assert "低秩 \\<b\\>" in out and "\\_task\\_" in out
