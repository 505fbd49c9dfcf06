"""Classes of images: their bytes become pixels once per batch, batch norms stand still, and what can't be read."""

from __future__ import annotations

import io
import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.composing import composed
from tests.trainer.objectives import other_kinds, pictures
from trainer.data.images import decoded
from trainer.data.sources.images import Images
from trainer.errors import ConfigError
from trainer.loop.batches import Collator
from trainer.loop.network import Network
from trainer.runs import assemble

KIND = "image_classification"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return pictures.model(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def checked(vit, tmp_path):
    return other_kinds.checker(other_kinds.teller(KIND, vit, tmp_path))


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_the_loss_is_transformers_own_and_the_pixels_are_the_processors(checked):
    parts = checked()
    rows = [parts.rows.train[place] for place in range(3)]
    batch = Collator(parts.objective.pad(parts.source), parts.objective.weigh)([dict(row) for row in rows])
    own = parts.tokenizer([decoded(row["image"], 3) for row in rows], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.inputs["pixel_values"], own) and batch.weight == 3
    model = assemble.load(parts).eval()
    found = parts.objective.loss(Network(model, parts.source, torch.device("cpu"), False), batch)
    with torch.no_grad():
        expected = float(model(**batch.inputs, labels=batch.labels).loss)
    assert float(found.mean.detach()) == pytest.approx(expected, abs=1e-6)
    assert parts.objective.size(batch) == 3 and int(parts.objective.units(batch)) == 3


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("ResNet", "[convolution]"),
        ("ConvNext", "[dwconv,pwconv1,pwconv2]"),
        ("EfficientNetLite", "[conv_pw,conv_dw,conv_pwl]"),
    ],
)
def test_a_convolutional_network_learns_and_its_export_is_the_same(family, targets, tmp_path, capsys):
    from tests.conftest import folder_of
    from trainer.runs.run import run
    from trainer.sweeps.plan import plan
    from weights import cli

    model = pictures.model(tmp_path / "model", family)
    everything = [
        *(*other_kinds.overrides(KIND, model, tmp_path), other_kinds.table(KIND, tmp_path)),
        *(f"variant.targets={targets}", "variant.rank=1", "train.max_steps=40", "optim.lr=2e-2"),
    ]
    record = run(plan(composed(everything)), everything)
    assert record.status == "done" and record.metrics["accuracy"] > 0.8
    assert cli.main(["export", str(folder_of(record, tmp_path)), "--to", "merged"]) == 0, capsys.readouterr()


def test_batch_norms_keep_their_statistics_and_training_computes_what_evaluation_does(checked, tmp_path):
    parts = checked("variant=full", model=pictures.model(tmp_path / "model", "ResNet"))
    model = assemble.load(parts).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = torch.randn(4, 3, 16, 16)
    found = model(pixel_values=images).logits
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(found, model.eval()(pixel_values=images).logits)


# -- one's own images -----------------------------------------------------------------------------


def test_a_folder_and_tables_of_files_or_bytes_give_the_same_images(tmp_path):
    folder = pictures.write(tmp_path / "images")
    files = sorted(folder.rglob("*.png"))
    named = pd.DataFrame(
        {"image": [str(f.relative_to(tmp_path)) for f in files], "label": [f.parent.name for f in files]}
    )
    named.to_csv(tmp_path / "named.csv", index=False)
    named.to_json(tmp_path / "named.jsonl", orient="records", lines=True)
    held = named.assign(image=[file.read_bytes() for file in files])
    held.to_parquet(tmp_path / "held.parquet")
    held.assign(image=[{"bytes": image, "path": None} for image in held["image"]]).to_parquet(
        tmp_path / "nested.parquet"
    )
    sources = [Images(str(path)) for path in (folder, *sorted(tmp_path.glob("*.*")))]
    assert len(sources) == 5
    found = [source.load() for source in sources]
    for one in found[1:]:
        assert one.labels == found[0].labels == ("left", "right")
        for split, rows in one.splits.items():
            assert [rows[name] for name in ("id", "image", "label")] == [
                found[0].splits[split][name] for name in ("id", "image", "label")
            ]
    assert len({tuple(source.identity().items()) for source in sources}) == 1


def test_another_image_is_another_task(tmp_path):
    folder = pictures.write(tmp_path / "images")
    before = Images(str(folder)).identity()
    file = sorted(folder.rglob("*.png"))[0]
    file.write_bytes(pictures.png(random.Random(9), True))
    from trainer.data.sources import encoded_files

    encoded_files._rows.cache_clear()
    assert Images(str(folder)).identity() != before


def test_copies_are_on_one_side(tmp_path):
    folder = tmp_path / "images"
    draw = random.Random(0)
    for number in range(30):
        content = pictures.png(draw, number % 2 == 0)
        for copy in range(3):
            path = folder / ("a" if number % 2 else "b") / f"{number}-{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    splits = Images(str(folder), holdout=0.3).load().splits
    assert not {*splits["train"]["image"]} & {*splits["validation"]["image"]}
    assert len({*splits["train"]["id"], *splits["validation"]["id"]}) == 90


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def deep(path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, r"left/0\.png is no image that can be read \("),
        (
            lambda path: path.write_text("a text"),
            r"left/0\.png is no image that can be read \(UnidentifiedImageError\)",
        ),
        (deep, r"left/0\.png has more than 8 bits a channel; allowed: 8"),
        (lambda path: (path.unlink(), path.mkdir()), r"left/0\.png can't be read: Is a directory"),
        (
            lambda path: (path.parents[1] / "x.png").write_bytes(path.read_bytes()),
            r"x\.png is no folder; allowed: a fol",
        ),
    ],
)
def test_what_is_no_image_is_named_by_its_file(spoil, said, tmp_path):
    folder = pictures.write(tmp_path / "images")
    spoil(folder / "left" / "0.png")
    with pytest.raises(ConfigError, match=rf"^task\.source\.train_path: '.*images': {said}"):
        Images(str(folder)).load()


@pytest.mark.parametrize(
    ("image", "said"),
    [("no.png", r"row 1: 'no\.png' can't be read: No such file"), ("", r"row 1 is ''; allowed: a file, or the bytes")],
)
def test_a_file_that_a_table_names_and_is_not_there_is_named(image, said, tmp_path):
    pd.DataFrame({"image": [image], "label": ["a"]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ConfigError, match=said):
        Images(str(tmp_path / "t.csv")).load()


def test_images_are_upright_and_of_the_models_channels():
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its side
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert decoded(file.getvalue(), 3).size == (2, 4)
    assert decoded(encoded(Image.new("P", (2, 2))), 3).mode == "RGB" and decoded(encoded(image), 1).mode == "L"


# -- what doesn't fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["task.metrics=[f1,rmse]"], r"task.metrics: 'rmse' in a (classification of images|task)"),
        (
            [
                "variant=peft",
                "variant.method=prompt_tuning",
                "+variant.options.num_virtual_tokens=2",
                "variant.targets=null",
            ],
            r"num_virtual_tokens: 2 in a classification of images, which has no tokens",
        ),
        (["task.kind=null"], r"task: columns file, image, label, allowed for a class"),
    ],
)
def test_what_a_run_can_not_do_is_refused(more, said, checked):
    with pytest.raises(ConfigError, match=said):
        checked(*more)


def test_a_model_of_texts_is_refused(checked, tiny_model):
    with pytest.raises(ConfigError, match="bert, for which transformers has no AutoModelForImageClassification"):
        checked(model=tiny_model)


def test_a_processor_that_leaves_images_of_different_sizes_is_refused(checked, tmp_path):
    import json

    model = pictures.model(tmp_path / "model")
    config = json.loads((model / "preprocessor_config.json").read_text()) | {"do_resize": False}
    (model / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"preprocessor_config.json makes images of .*; allowed: one size"):
        checked(model=model)


def test_a_processor_of_another_size_than_the_models_is_refused(checked, tmp_path):
    with pytest.raises(ConfigError, match=r"model: it can't take images as its preprocessor_config\.json makes them"):
        assemble.load(checked(model=pictures.model(tmp_path / "model", image_size=32)))
