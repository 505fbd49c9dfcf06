"""A report as a reader has it: opened from a file in Chromium, sorted, filtered, linked, on a phone."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.commands import cli
from tests.analysis.plots.conftest import allocate, log
from tests.browser import watch

pytestmark = pytest.mark.slow

EVIL = "<script>alert(1)</script>"
PHONE = {"width": 390, "height": 844}
# Pixels of the smallest letters that can be seen.
SMALLEST = """Math.min(...[...document.querySelectorAll('body *')]
    .filter(e => e.offsetParent && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => parseFloat(getComputedStyle(e).fontSize)))"""


@pytest.fixture
def study(store) -> dict[str, Path]:
    """Four variants on two tasks, with blanks, a failed run, curves, ranks and trackers. The folders of some runs."""
    folders = {}
    values = {"lora": 0.75, "adalora": 0.8, "sora": 0.9, "v10": 0.0905, "v9": 0.1}
    for variant, value in values.items():
        for seed in range(2):
            later = seed / (101 if variant == "sora" else 100)
            folder = store.add(variant, seed, value + later, params__adapter_start=1000 * len(variant) ** 3)
            folders[f"{variant} {seed}"] = folder
    store.add("lora", 0, 0.2, "opinion")
    store.add("sora", 0, 0.3, "opinion")
    folders["failed"] = store.add("sora", 7, error="Traceback\nno memory\nat all")
    log(folders["adalora 0"], {5: 0.5, 10: 0.7}, {5: 0.7, 10: 0.4})
    allocate(folders["adalora 0"], (0, [5] * 6), (8, [1, 2, 3, 4, 0, 8]))
    for name, url in (("lora 0", "https://wandb.ai/me/p/runs/1"), ("lora 1", "javascript:alert(1)")):
        (folders[name] / "tracker.json").write_text(json.dumps({"name": "wandb", "url": url, "project": "p"}))
    return folders


@pytest.fixture(scope="module")
def written() -> dict[object, bytes]:
    """Reports by the files and arguments that they were made of."""
    return {}


@pytest.fixture
def visit(chromium, written) -> Iterator[Callable[..., object]]:
    """Opens the report of `runs` at an address; whatever goes wrong on a page fails the test in the end."""
    troubles = []

    def opened(address: str = "", *arguments: str, viewport: dict[str, int] | None = None, **options: object):
        arguments = arguments or ("--no-pictures",)
        made_of = arguments, tuple((str(p), p.read_bytes()) for p in sorted(Path("runs").rglob("*")) if p.is_file())
        if made_of not in written:
            assert cli.main(["report", "runs", *arguments]) == 0
            written[made_of] = Path("report.html").read_bytes()
        Path("report.html").write_bytes(written[made_of])
        page = chromium.new_page(viewport=viewport or {"width": 1280, "height": 900}, **options)
        page.set_default_timeout(10_000)
        troubles.append(watch(page))
        page.goto(Path("report.html").resolve().as_uri() + address)
        return page

    yield opened
    for context in chromium.contexts:
        context.close()
    assert not any(troubles), troubles


def shown(page, table: str, column: int) -> list[str]:
    """The cells of a column in the rows that are shown."""
    script = "(rows, c) => rows.filter(r => !r.hidden).map(r => r.cells[c].innerText.trim().replace(/\\s+/g, ' '))"
    return page.eval_on_selector_all(f"#{table} tbody tr:not(.title)", script, column)


def heads(page, table: str) -> list[str]:
    return page.eval_on_selector_all(f"#{table} thead th", "all => all.map(th => th.innerText.split('\\n')[0].trim())")


def is_filled(cell: str) -> bool:
    return cell not in ("", "no run", "1 run failed", "not on every task", "not measured")


def number(cell: str) -> float | None:
    """The number that a cell starts with, behind the name of a metric, in its unit; None where it is another text."""
    found = re.fullmatch(r"(?:accuracy )?(-?[\d.]+)([kM]?)(?: (?:±|\(|to).*)?", cell)
    return float(found[1]) * {"": 1, "k": 1e3, "M": 1e6}[found[2]] if found else None


def collated(text: str) -> list[tuple[int, str]]:
    """Digits by their number and before letters, as the page orders texts."""
    parts = re.findall(r"\d+|\D+", text)
    return [(int(part), "") if part.isdecimal() else (10**12, part) for part in parts]


# Clicks every head of a table twice: its name, and after each click its direction, the cells below it, the first column
# of the rows, and how many heads are sorted by.
SORTED = """table => {
    const texts = place => [...document.querySelectorAll(`#${table} tbody tr:not(.title)`)]
        .filter(row => !row.hidden).map(row => row.cells[place].innerText.trim().replace(/\\s+/g, ' '))
    const found = []
    for (let place = 0; place < document.querySelectorAll(`#${table} thead th`).length; place++)
        for (let time = 0; time < 2; time++) {
            const heads = () => document.querySelectorAll(`#${table} thead th`)
            heads()[place].querySelector('button').click()
            found.push([heads()[place].innerText.split('\\n')[0].trim(), heads()[place].getAttribute('aria-sort'),
                heads()[place].getAttribute('data-first'), texts(place), texts(0),
                document.querySelectorAll(`#${table} th[aria-sort]`).length])
        }
    return found
}"""


def test_every_head_sorts_both_ways_with_values_in_order_and_blanks_last(study, visit):
    page = visit()
    for table in ("headline", "compared", "all-runs"):
        rows = sorted(shown(page, table, 0))
        found = page.evaluate(SORTED, table)
        assert len(found) == 2 * len(heads(page, table)) > 0
        for click, (name, direction, first, cells, names, by) in enumerate(found):
            filled = list(itertools.takewhile(is_filled, cells))
            assert not any(map(is_filled, cells[len(filled) :])), f"{name}: blanks are last"
            keys = [number(cell) for cell in filled]
            if None in keys:  # names, and ids of which some start with a digit
                keys = [collated(cell) for cell in filled]
            assert keys == sorted(keys, reverse=direction == "descending"), (name, direction, cells)
            assert sorted(names) == rows and by == 1
            assert (direction == first) == (click % 2 == 0) and {direction, first} <= {"ascending", "descending"}


def test_a_metric_comes_best_first_and_names_as_a_person_counts(study, visit):
    page = visit()
    page.click("#headline th:nth-child(2) button")
    assert shown(page, "headline", 0) == ["sora", "adalora", "lora", "v9", "v10"]
    page.click("#headline th:nth-child(1) button")
    assert shown(page, "headline", 0) == ["adalora", "lora", "sora", "v9", "v10"]


def test_heads_work_with_the_keyboard(study, visit):
    page = visit()
    page.focus("#headline th:nth-child(2) button")
    page.keyboard.press("Enter")
    assert shown(page, "headline", 0)[0] == "sora"
    page.keyboard.press("Space")
    assert shown(page, "headline", 0)[0] == "v10"


def test_the_table_is_filtered_by_text_task_and_status(study, visit):
    page = visit()
    tools = page.locator(".tools[data-for=headline]")
    tools.locator("input").fill("ORA")
    assert shown(page, "headline", 0) == ["adalora", "lora", "sora"]
    assert tools.locator("output").inner_text() == "3 of 5 rows"
    tools.locator("[data-filter=status]").select_option("complete")
    assert shown(page, "headline", 0) == ["lora"]
    tools.locator("[data-filter=status]").select_option("failed")
    assert shown(page, "headline", 0) == ["sora"]
    tools.locator("input").fill("")
    tools.locator("[data-filter=status]").select_option("blank")
    assert shown(page, "headline", 0) == ["adalora", "v9", "v10"]
    tools.locator("[data-filter=task]").select_option("opinion")
    assert not page.locator("#headline th[data-task=movie]").is_visible()
    assert page.locator("#headline th[data-task=opinion]").is_visible()
    tools.locator("[data-filter=task]").select_option("")
    assert page.locator("#headline th[data-task=movie]").is_visible()


def test_the_table_is_filtered_by_model(store, visit):
    store.add("lora", 0)
    store.add("lora", 0, model="roberta")
    page = visit()
    page.select_option(".tools[data-for=headline] [data-filter=model]", "roberta")
    assert shown(page, "headline", 0) == ["lora model=roberta"]


def test_verdicts_are_filtered_by_their_word(study, visit):
    page = visit()
    words = set(shown(page, "compared", 2))
    page.select_option(".tools[data-for=compared] [data-filter=word]", "undecided")
    assert set(shown(page, "compared", 2)) == {"undecided"} and words == {"better", "undecided"}


def test_runs_are_filtered_by_words_in_anything_and_by_status(study, visit):
    page = visit()
    assert page.inner_text("#runs-shown") == "1–13 of 13 runs"
    page.fill("#runs-here input", "seed=1 lora")
    assert shown(page, "all-runs", 0) == ["adalora", "lora"]
    page.fill("#runs-here input", "no memory")
    assert shown(page, "all-runs", 4) == ["failed"]
    page.fill("#runs-here input", "")
    page.select_option("#runs-here [data-filter=status]", "failed")
    assert page.inner_text("#runs-shown") == "1–1 of 1 runs, 13 in all"


def test_a_further_column_is_any_field(study, visit):
    page = visit()
    page.select_option("#more", "config.variant.rank")
    assert heads(page, "all-runs")[-1] == "config.variant.rank" and set(shown(page, "all-runs", 10)) == {"8"}
    page.select_option("#more", "")
    assert "config.variant.rank" not in heads(page, "all-runs")


def test_a_row_leads_to_its_runs_and_each_run_to_its_page_and_back(study, visit):
    page = visit()
    page.click("#headline a >> text=adalora")
    assert shown(page, "all-runs", 0) == ["adalora", "adalora"]
    before = page.evaluate("scrollY")
    page.click("#all-runs a >> nth=0")
    page.wait_for_selector("#run h2 >> text=adalora on movie, seed 0")
    assert page.title() == "adalora on movie, seed 0 – Results" and page.evaluate("scrollY") == 0
    assert not page.locator("#overview").is_visible()
    page.click("#run >> text=Next run")
    page.wait_for_selector("#run h2 >> text=adalora on movie, seed 1")
    page.go_back()
    page.wait_for_selector("#run h2 >> text=adalora on movie, seed 0")
    page.go_back()
    page.wait_for_selector("#overview", state="visible")
    assert page.title() == "Results" and abs(page.evaluate("scrollY") - before) < 2
    assert shown(page, "all-runs", 0) == ["adalora", "adalora"], "filters are as they were"


def test_the_page_of_a_run_is_reached_by_its_address(study, visit):
    page = visit(f"#/run/{study['adalora 0'].name}")
    text = page.inner_text("#run")
    assert "adalora on movie, seed 0" in text and str(study["adalora 0"]) in text
    assert "git checkout 0123456789abcdef\npython train.py variant=adalora seed=0" in text
    assert page.locator(".chart polyline").count() == 2
    assert page.locator(".chart svg").first.get_attribute("aria-label").startswith("eval/accuracy: from 0.5 at step 5")
    assert page.locator(".heat td[title]").all_inner_texts() == ["1", "3", "0", "2", "4", "8"]
    assert "At step 8, after 1 changes: total 18; at step 0 it was 30." in text


def test_pointing_at_a_curve_says_its_value(study, visit):
    page = visit(f"#/run/{study['adalora 0'].name}")
    figure = page.locator(".chart").first
    box = figure.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 50)
    assert figure.locator("p").inner_text() == "step 5: 0.5"


def test_fields_are_found_by_name_and_value(study, visit):
    page = visit(f"#/run/{study['lora 0'].name}")
    rank = page.locator(".fields th", has_text=re.compile("^variant.rank$"))
    assert not rank.is_visible(), "the config is folded"
    page.fill("#run input[type=search]", "rank 8")
    assert rank.is_visible() and page.locator(".fields th:visible").count() == 1
    page.fill("#run input[type=search]", "")
    assert not rank.is_visible() and page.locator(".fields th", has_text="memory.weights").is_visible()


def test_a_failed_run_shows_its_whole_error(study, visit):
    page = visit(f"#/run/{study['failed'].name}")
    assert page.inner_text("#run pre >> nth=0") == "Traceback\nno memory\nat all"
    assert "Not drawn: no metrics.jsonl." in page.inner_text("#run")


def test_a_tracker_is_a_link_where_its_address_is_one(study, visit):
    page = visit(f"#/run/{study['lora 0'].name}")
    link = page.locator("#run a[rel]")
    assert link.get_attribute("href") == "https://wandb.ai/me/p/runs/1" and "wandb: " in page.inner_text("#run")
    page = visit(f"#/run/{study['lora 1'].name}")
    assert page.locator("#run a[rel]").count() == 0
    assert "no link to it is recorded" in page.inner_text("#run") and "javascript:alert(1)" in page.inner_text("#run")


def test_a_run_that_is_not_there_is_said(study, visit):
    assert "This page has no run <b>x." in visit("#/run/%3Cb%3Ex").inner_text("#run")


def test_nothing_from_a_record_runs_or_is_markup(store, visit):
    folders = [store.add(EVIL, seed, task=EVIL, config={"x": f"</script>{EVIL}"}) for seed in range(2)]
    store.add("lora", 0, task=EVIL, error=f"</script>{EVIL}")
    odd = store.add("a/b%2F#?", 0, task="__proto__").name
    page = visit("")
    page.on("dialog", lambda dialog: pytest.fail(f"a script of a record ran: {dialog.message}"))
    assert page.locator("script").count() == 5 and page.locator("i, b").count() == 0
    page.goto(page.url + f"#/run/{folders[0].name}")
    assert page.inner_text("#run h2") == f"{EVIL} on {EVIL}, seed 0"
    page.goto(page.url.partition("#")[0] + f"#/run/{odd}")
    page.wait_for_selector("#run h2 >> text=a/b%2F#? on __proto__, seed 0")
    page.click("#run >> text=All runs")
    page.click("#all-runs a >> text=a/b%2F#?")
    page.wait_for_selector("#run h2 >> text=a/b%2F#? on __proto__, seed 0")


def test_on_a_phone_nothing_but_tables_scrolls_sideways_and_text_is_large_enough(study, visit):
    page = visit("", "--only", "memory,rank-map,learning-curves", viewport=PHONE, has_touch=True, is_mobile=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for address in ("", f"#/run/{study['adalora 0'].name}", f"#/run/{study['failed'].name}"):
        page.evaluate("hash => { location.hash = hash }", address)
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, address
        assert page.evaluate("visualViewport.width") == 390
        assert page.evaluate(SMALLEST) >= 12.5
    page.evaluate("location.hash = ''")
    page.wait_for_selector("#overview", state="visible")
    assert page.locator("#headline").evaluate("t => t.parentElement.scrollWidth > t.parentElement.clientWidth")


def test_a_very_long_name_widens_nothing(store, visit):
    for seed in range(2):
        store.add("v" * 500, seed, task="t" * 300, study="s" * 300, overrides=[f"x={'y' * 300}"])
    folder = store.add("lora", 0, task="t" * 300)
    page = visit("", viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.goto(page.url + f"#/run/{folder.name}")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_without_scripts_table_verdicts_notes_and_pictures_are_there(study, visit):
    page = visit("", "--only", "memory", java_script_enabled=False)
    text = page.inner_text("#overview")
    assert "80.50 ± 0.71 (2)" in text and "Every row against lora" in text and "Cells: mean ± sd (n)" in text
    assert "need scripts" in text and not page.locator(".tools").first.is_visible()
    assert page.locator("img").first.evaluate("i => i.naturalWidth") > 300


def test_pictures_are_loaded_from_the_page_itself(study, visit):
    page = visit("", "--only", "memory,rank-map,learning-curves")
    assert page.locator("img").count() >= 4
    assert page.eval_on_selector_all("img", "all => all.every(i => i.complete && i.naturalWidth > 300 && i.alt)")


def test_thousands_of_runs_are_turned_leaf_by_leaf(store, visit):
    for seed in range(120):
        store.add("lora", seed, 0.5 + seed / 1000)
    page = visit()
    assert len(shown(page, "all-runs", 0)) == 50 and page.inner_text("#runs-shown") == "1–50 of 120 runs"
    page.click("#leaves >> text=Further")
    page.click("#leaves >> text=Further")
    assert page.inner_text("#runs-shown") == "101–120 of 120 runs"
    assert page.locator("#leaves >> text=Further").is_disabled()
    page.click("#all-runs th:nth-child(4) button")
    assert shown(page, "all-runs", 3)[0] == "accuracy 61.90", "sorting is over all leaves and goes to the first"


def test_commands_of_the_runs_that_are_shown(study, visit):
    page = visit()
    page.fill("#runs-here input", "adalora")
    page.click("#commands summary")
    page.wait_for_selector("#commands code >> text=seed=1")
    lines = page.inner_text("#commands code").splitlines()
    assert [line.partition("  #")[0] for line in lines] == [
        "python train.py variant=adalora seed=0",
        "python train.py variant=adalora seed=1",
    ]


def test_an_override_is_quoted_for_a_shell(store, visit):
    folder = store.add("lora", 0, overrides=["x=[a, b]", "y=it's $HOME", "z=1"])
    assert """python train.py 'x=[a, b]' 'y=it'"'"'s $HOME' z=1""" in visit(f"#/run/{folder.name}").inner_text("#run")


def test_in_print_tools_are_gone_and_tables_are_whole(study, visit):
    page = visit()
    page.emulate_media(media="print")
    assert not page.locator(".tools").first.is_visible() and not page.locator("header nav").is_visible()
    assert page.locator("#headline").evaluate("t => getComputedStyle(t.parentElement).overflowX") == "visible"
