"""Dotted names as a grid of modules and blocks."""

from __future__ import annotations

from analysis.text.layer_grid import layout

BERT = [
    f"bert.encoder.layer.{block}.{module}"
    for block in (0, 1, 10)
    for module in ("attention.self.query", "attention.output.dense", "output.dense")
]


def test_blocks_are_columns_and_modules_are_rows():
    grid = layout(BERT)
    assert grid.blocks == (0, 1, 10)
    assert grid.modules == ("query", "attention.output.dense", "output.dense")
    assert grid.position["bert.encoder.layer.10.output.dense"] == (2, 2)


def test_a_name_is_cut_to_what_tells_it_from_the_others():
    grid = layout(["h.0.attn.q", "h.0.mlp.q", "h.0.mlp.up"])
    assert grid.modules == ("attn.q", "mlp.q", "up")


def test_blocks_are_in_the_order_of_their_numbers():
    assert layout(["h.2.q", "h.10.q", "h.1.q"]).blocks == (1, 2, 10)


def test_layers_outside_the_blocks_come_first():
    grid = layout(["h.0.q", "embeddings", "head.dense"])
    assert grid.blocks == (None, 0)
    assert grid.block_labels == ["–", "0"]
    assert grid.position["embeddings"] == (1, 0)


def test_two_lists_of_blocks_are_told_apart():
    grid = layout(["encoder.block.0.q", "decoder.block.0.q"])
    assert grid.modules == ("encoder.block.q", "decoder.block.q")
    assert len(set(grid.position.values())) == 2


def test_of_several_numbers_the_first_is_the_block():
    grid = layout(["h.0.experts.0.up", "h.0.experts.1.up"])
    assert grid.blocks == (0,)
    assert grid.modules == ("0.up", "1.up")


def test_every_layer_has_a_place_of_its_own():
    names = [*BERT, "bert.pooler.dense", "classifier"]
    assert len(set(layout(names).position.values())) == len(names)
