"""The documentation site: it is built without a warning, fetches nothing, and its reference has everything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs_build import commands, gallery, records, settings
from docs_build.fields import of_class
from docs_build.markdown import described
from tests.conftest import ROOT
from trainer.record_fields import GROUPS, UNITS, unit

pytest.importorskip("material", reason="extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Strict: a link to nothing, a heading that isn't there, a page in no menu is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text)
        loaded = [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]
        assert [tag for tag in loaded if 'rel="canonical"' not in tag] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_and_the_gallery_have_every_name(site: Path) -> None:
    def text(place: str) -> str:
        return (site / place).read_text(encoding="utf-8")

    assert_all(text("reference/settings.html"), [f.name for g in settings.SCHEMAS for f in settings.of_schema(g)])
    assert_all(text("reference/record.html"), records.measured())
    assert_all(text("reference/commands.html"), ["weights truncate", "analysis compare", *commands.benchmarks()])
    methods = "".join(text(place.replace(".md", ".html")) for place in gallery.places())
    assert_all(methods, [gallery.command(method) for method in gallery.methods()])
    assert 'id="variants.core.variant.Variant.on_update"' in text("reference/python.html")


def assert_all(text: str, names: list[str]) -> None:
    assert len(names) > 5
    assert [name for name in names if not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.]?\w)", text)] == []


def test_every_setting_and_every_field_of_a_record_has_a_meaning() -> None:
    assert settings.undescribed() == []
    assert records.undescribed() == []
    methods = {m.name: [f.name for f in gallery.settings(m) if not f.meaning] for m in gallery.methods()}
    assert {name: missing for name, missing in methods.items() if missing} == {}


def test_types_are_given_for_fields_that_are_in_the_files_of_conf() -> None:
    fields = {f.name: f for group in settings.GROUPS for f, _ in settings.in_files(group).values()}
    assert [name for name in settings.TYPES if name not in fields] == []
    assert [name for name, f in fields.items() if not f.type] == []
    assert settings.given_otherwise() == []


def test_units_are_of_fields_that_there_are() -> None:
    names = {f"{group}.{f.name}" for group, cls in GROUPS.items() for f in of_class(cls)} | set(GROUPS)
    assert set(UNITS) <= names
    assert unit("memory.optimizer") == "bytes"
    assert unit("time.tokens_per_second") == "tokens a second"
    assert unit("metric.name") == unit("data.protocol") == ""


def test_meanings_are_read_from_a_docstring() -> None:
    text = "A method.\n\nrank: of every layer. alpha, beta: as in LoRA (p. 3), positive.\nmask: one of: a, b."
    assert described(text) == {
        "rank": "of every layer.",
        "alpha": "as in LoRA (p. 3), positive.",
        "beta": "as in LoRA (p. 3), positive.",
        "mask": "one of: a, b.",
    }


def test_a_link_to_nothing_is_refused() -> None:
    from docs_build import links

    with pytest.raises(ValueError, match=r"docs/scale\.md: no such file: nowhere\.md"):
        links.site({"scale.md": "[there](nowhere.md)"}, {}, {}, ())


def test_links_lead_to_pages_to_the_gallery_and_to_files_that_are_shown() -> None:
    from docs_build import links

    text = (
        "[a](../variants/lora.py) [b](study/protocol.md#rates) [c](../Makefile) [d](../README.md)\n```\n[e](x)\n```\n"
    )
    places = links.site(
        {"scale.md": text}, {ROOT / "README.md": "index.md"}, {ROOT / "variants/lora.py": "m.md#lora"}, ()
    )
    assert (
        places["scale.md"]
        == "[a](m.md#lora) [b](study/protocol.md#rates) [c](files/Makefile.md) [d](index.md)\n```\n[e](x)\n```\n"
    )
    assert places["files/Makefile.md"].startswith("# Makefile")
