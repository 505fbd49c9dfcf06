"""The command line: help, files, encodings, what it imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.commands import cli
from analysis.commands.command import Verb
from tests.analysis.interpreter import python
from tests.conftest import ROOT


def test_help_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert all(re.search(rf" {verb.name}\s", output) and verb.summary in output for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_help_of_a_verb_shows_an_example_that_parses(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb.name, "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for line in verb.example.splitlines():
        assert f"  {line}\n" in output
        command = line.split()
        assert command[:4] == ["python", "-m", "analysis", verb.name]
        assert cli.parser().parse_args(command[3:]).verb == verb.name


@pytest.mark.parametrize("arguments", [[], ["tabel"], ["table"], ["table", "runs", "--format", "pdf"]])
def test_a_wrong_command_exits_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m analysis" in capsys.readouterr().err


def test_a_table_imports_nothing_that_takes_its_time(store):
    store.add("lora", 0)
    code = """if True:
        import sys
        from analysis.commands import cli
        cli.main(["table", "runs"])
        heavy = ("torch", "transformers", "pandas", "numpy", "pyarrow", "scipy", "jinja2", "yaml")
        print([name for name in heavy if name in sys.modules])
    """
    done = python("-c", code)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.splitlines()[-1] == b"[]"


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_collecting_never_imports_torch(store, name):
    store.add("lora", 0)
    code = f"""if True:
        import sys
        from analysis.commands import cli
        cli.main(["collect", "runs", "--output", "{name}"])
        print([name for name in ("torch", "transformers", "scipy") if name in sys.modules])
    """
    done = python("-c", code)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.splitlines()[-1] == b"[]"


def test_help_is_fast():
    """What takes a second to import belongs inside the verb that needs it."""
    code = """if True:
        import sys
        from analysis.commands import cli
        cli.parser().format_help()
        print([name for name in ("torch", "pandas", "numpy", "scipy", "pyarrow", "matplotlib") if name in sys.modules])
    """
    done = python("-c", code)
    assert done.stdout == b"[]\n", done.stderr.decode()


def test_two_interpreters_give_the_same_bytes(store):
    for rank in (4, 8, 16):
        for task in ("movie", "opinion", "boolq"):
            store.add("lora", 0, rank / 20, task, config={"variant.rank": rank, "variant.alpha": rank})
            store.add("sora", 0, task=task, error="no memory", versions__torch=f"2.{rank}")
    texts = {python("-m", "analysis", "table", "runs", PYTHONHASHSEED=seed).stdout for seed in "123"}
    assert len(texts) == 1 and b"lora rank=16" in texts.pop()


def test_as_a_module_in_a_terminal_without_unicode(store):
    for seed in (0, 1):
        store.add("lora", seed)
    done = python("-m", "analysis", "table", "runs", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr.decode()
    assert "80.00 ± 0.00 (2)" in done.stdout.decode("utf-8")


def test_output_goes_to_a_file(store, table, tmp_path):
    store.add("lora", 0)
    printed = table("runs")
    assert table("runs", "--output", "table.md") == ""
    assert Path("table.md").read_bytes() == printed.encode()


@pytest.mark.parametrize(
    "name, form", [("t.csv", "csv"), ("t.tex", "latex"), ("t.html", "html"), ("t.md", "md"), ("t.txt", "md")]
)
def test_the_ending_of_the_file_says_the_format(store, table, name, form):
    store.add("lora", 0)
    table("runs", "--output", name)
    assert Path(name).read_text() == table("runs", "--format", form)


def test_the_format_wins_over_the_ending(store, table):
    store.add("lora", 0)
    table("runs", "--output", "t.txt", "--format", "csv")
    assert Path("t.txt").read_text().startswith("variant,settings,")


def test_an_output_that_can_not_be_written_is_one_line(store, capsys):
    store.add("lora", 0)
    assert cli.main(["table", "runs", "--output", "nowhere/table.md"]) == 2
    assert capsys.readouterr().err == "analysis: can't write nowhere/table.md: No such file or directory\n"


def test_a_reader_who_has_seen_enough_is_no_error(store):
    for number in range(100):
        store.add("v" * 2000 + str(number), 0)
    code = "import sys; from analysis.commands.cli import main; sys.exit(main(['table', 'runs']))"
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=env, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_verb_whose_packages_are_not_installed_names_the_extra(capsys):
    def absent(options):
        raise ModuleNotFoundError("No module named 'statsmodels.stats'", name="statsmodels.stats")

    verb = Verb("compare", "summary", "description", "example", lambda parser: None, absent)
    assert cli.CommandLine("analysis", "", (verb,)).main(["compare"]) == 2
    told = "analysis: compare needs statsmodels; install it with: pip install 'loratory[analysis]'\n"
    assert capsys.readouterr().err == told
