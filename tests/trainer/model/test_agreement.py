"""A model, its tokenizer and the rows fit together, or one line says what does not before a weight is loaded."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import transformers

from tests.classifiers import classifier
from tests.composing import composed
from tests.trainer.model.model_zoo import FAMILIES, TEXTS, make
from trainer.errors import ConfigError
from trainer.model import agreement
from trainer.model import backbone as models
from trainer.runs import assemble


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    """Fails the test where a weight is loaded."""
    monkeypatch.setenv("LORATORY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "load_backbone", lambda *_: pytest.fail("weights were loaded"))


@pytest.fixture
def parts_of(tmp_path):
    """The parts of a run of a model on texts, or on pairs of each text and itself, with further overrides."""

    def made(model: Path, *overrides: str, texts: list[str] = TEXTS, pairs: bool = False) -> assemble.RunContext:
        path = tmp_path / f"{len(list(tmp_path.glob('*.csv')))}.csv"  # a process reads a file once
        with path.open("w", newline="") as file:
            rows = [[text, text, number % 2] for number, text in enumerate(texts)]
            csv.writer(file).writerows([["text", "other", "label"], *rows])
        files = [f"task.source.train_path={path}", f"task.source.validation_path={path}", "task.metrics=[accuracy]"]
        files += ["task.source.text_pair=other"] if pairs else []
        base = ["model=folder", f"model.path={model}", "task=file", "variant=head"]
        return assemble.check(composed([*base, *files, *overrides]))

    return made


def ids(parts: assemble.RunContext, row: int) -> list[int]:
    found: list[int] = parts.rows.train[row]["input_ids"]
    return found


# -- positions


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_cut_at_the_positions_that_a_model_can_use(family, parts_of, tmp_path):
    long, longest = " ".join(TEXTS * 20), FAMILIES[family][2]
    parts = parts_of(make(tmp_path / "model", family), "data.max_length=100", texts=[*TEXTS, long])
    assert parts.max_length == (longest or 100) and max(parts.rows.train.lengths) == parts.max_length
    model = transformers.AutoModelForSequenceClassification.from_pretrained(parts.source, num_labels=2)
    row = parts.rows.train[3]
    del row["labels"]
    model(**{name: torch.tensor([numbers]) for name, numbers in row.items()})


def test_a_table_of_positions_is_what_limits_a_text_by_one_place(parts_of, tmp_path):
    """MPNet takes a text of as many tokens as are said, and not one more."""
    parts = parts_of(make(tmp_path / "model", "MPNet"), "data.max_length=100")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(parts.source, num_labels=2)
    model(torch.full((1, parts.max_length), 9))
    with pytest.raises(IndexError):
        model(torch.full((1, parts.max_length + 1), 9))


@pytest.mark.parametrize(("pairs", "special"), [(False, 2), (True, 3)])
def test_a_length_with_room_for_special_tokens_alone_is_refused(pairs, special, parts_of, tmp_path):
    folder = make(tmp_path / "model", "Bert")
    with pytest.raises(ConfigError) as caught:
        parts_of(folder, f"data.max_length={special}", pairs=pairs)
    line = (
        f"data.max_length: {special} tokens in a row, {special} of which the tokenizer adds; allowed: above {special}"
    )
    assert str(caught.value) == line


# -- letters of a special token

LETTERS = {"Bert": "[SEP]", "GPT2": "<|endoftext|>", "T5": "</s>", "Bart": "</s>", "Llama": "</s>", "XLNet": "<cls>"}


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("family", LETTERS)
def test_letters_of_a_special_token_are_letters(family, pairs, parts_of, tmp_path):
    folder = make(tmp_path / "model", family)
    usual = [ids(parts_of(folder, pairs=pairs), row) for row in range(3)]
    texts = [TEXTS[0], f"{TEXTS[1]}{LETTERS[family]}", TEXTS[2]]
    parts = parts_of(folder, texts=texts, pairs=pairs)
    special = models.tokenizer(folder, classifier()).convert_tokens_to_ids(LETTERS[family])
    assert parts.rows.letters == 2  # in train and in validation
    assert [ids(parts, row).count(special) for row in range(3)] == [row.count(special) for row in usual]
    assert "".join(models.tokenizer(folder, classifier()).decode(ids(parts, 1)).split()).count(LETTERS[family]) >= 1
    assert [ids(parts, row) for row in (0, 2)] == [usual[0], usual[2]]  # other rows are what they were
    cut = parts_of(folder, "data.max_length=9", texts=texts, pairs=pairs)
    assert [ids(cut, row).count(special) for row in range(3)] == [row.count(special) for row in usual]


def test_letters_that_a_tokenizer_takes_for_a_special_token_in_any_case_are_refused_by_row(parts_of, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    folder = make(tmp_path / "model", "T5")
    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        parts_of(folder, texts=["a", "a </s> a", "a a"])
    assert str(caught.value) == (
        "task: row 2 of train ('a </s> a') spells a special token, and the model's tokenizer can't read it as ordinary "
        "text; allowed: texts without special tokens"
    )


# -- numbers


def test_a_word_above_the_vocabulary_is_refused_by_row_and_only_where_a_row_has_it(parts_of, tmp_path):
    folder = make(tmp_path / "model", "GPT2")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["zebra"])
    words.save_pretrained(folder)
    parts_of(folder)
    size = len(words) - 1
    with pytest.raises(ConfigError) as caught:
        parts_of(folder, texts=[*TEXTS, "a zebra"])
    assert str(caught.value) == (
        f"model: its tokenizer has more tokens: row 4 of train ('a zebra') has the id {size}, "
        f"and the model has {size}; allowed: ids below {size}"
    )


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_a_padding_token_above_the_vocabulary_is_refused(family, parts_of, tmp_path):
    folder = make(tmp_path / "model", family)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"pad_token": "[PAD]"})
    words.save_pretrained(folder)
    size = len(words) - 1
    with pytest.raises(
        ConfigError, match=rf"^model: its padding is token {size} \(pad_token_id of the config, or else of the tok"
    ):
        parts_of(folder)


def test_padding_with_a_token_above_the_vocabulary_is_refused_though_the_config_names_another(parts_of, tmp_path):
    folder = make(tmp_path / "model", "Bert", pad_token_id=0)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.add_special_tokens({"pad_token": "[NONE]"})
    words.save_pretrained(folder)
    size = len(words) - 1
    with pytest.raises(
        ConfigError, match=rf"^model: its tokenizer pads with token {size} \('\[NONE\]'\), and the model"
    ):
        parts_of(folder)


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(parts_of, tmp_path):
    folder = make(tmp_path / "model", "Llama", {"eos_token": None})
    with pytest.raises(
        ConfigError, match=r"^model: its tokenizer has neither a padding token nor an end-of-text token"
    ):
        parts_of(folder)


@pytest.mark.parametrize("family", ["T5", "Bart"])
def test_a_model_that_looks_for_another_end_of_a_text_is_refused(family, parts_of, tmp_path):
    folder = make(tmp_path / "model", family, eos_token_id=9)
    with pytest.raises(ConfigError, match=r"^model: the end of a text is token 9 in its config \(eos_token_id\)"):
        parts_of(folder)


def test_a_text_without_a_token_is_refused_by_row(parts_of, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Replace

    folder = make(tmp_path / "model", "GPT2")
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.normalizer = Replace("~", "")  # type: ignore[assignment]
    words.save(str(folder / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"^task: row 2 of train \('~~'\) yields no token with the model's tokenizer"):
        parts_of(folder, texts=["a film", "~~", "a plot"])


# -- types of tokens


@pytest.mark.parametrize("family", ["Roberta", "DistilBert", "Xmod", "GPT2", "Llama", "MPNet"])
def test_types_go_only_to_models_that_tell_them_apart(family, parts_of, tmp_path):
    names = ["input_ids", "token_type_ids", "attention_mask"]
    folder = make(tmp_path / "model", family, {"model_input_names": names})
    parts = parts_of(folder, pairs=True)
    assert list(parts.rows.train[0]) == ["attention_mask", "input_ids", "labels"]
    assert models.tokenizer(folder, classifier()).model_input_names == ["input_ids", "attention_mask"]


def test_models_that_read_types_keep_them(parts_of, tmp_path):
    for family in ("Bert", "XLNet"):
        folder = make(
            tmp_path / family, family, {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        )
        assert "token_type_ids" in parts_of(folder, pairs=True).rows.train[0]


def test_more_types_than_the_model_has_are_refused_by_row(parts_of, tmp_path):
    folder = make(tmp_path / "model", "Bert", type_vocab_size=2)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        text.replace('"type_id":1', '"type_id":3').replace('"type_id": 1', '"type_id": 3')
    )
    with pytest.raises(ConfigError, match=r"^model: its tokenizer has more token types: row 1 of train \('a warm film"):
        parts_of(folder, pairs=True)


def test_a_type_for_padding_that_the_model_has_not_is_refused(parts_of, tmp_path):
    folder = make(tmp_path / "model", "Bert")
    parts = parts_of(folder)
    words = models.tokenizer(folder, classifier())
    words._pad_token_type_id = 3  # as XLNet's
    with pytest.raises(
        ConfigError, match=r"^model: its tokenizer gives padding the type 3, and the model has 2 token types"
    ):
        agreement.check(models.skeleton(folder, classifier(2)), words, parts.rows, None)  # type: ignore[arg-type]


# -- kinds of models and of outputs


def test_outputs_have_names_whatever_the_config_says(tmp_path):
    folder = make(tmp_path / "model", "Bert", return_dict=False)
    model = transformers.AutoModelForSequenceClassification.from_config(models.model_config(folder, classifier(2)))
    assert model(torch.tensor([[2, 9, 3]])).logits.shape == (1, 2)


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_a_model_without_a_padding_token_takes_the_tokenizers(family, tmp_path):
    folder = make(tmp_path / "model", family)
    padding = models.tokenizer(folder, classifier()).pad_token_id
    assert models.model_config(folder, classifier()).pad_token_id == padding is not None


@pytest.mark.parametrize(("kind", "name"), [("ViTConfig", "vit"), ("WhisperConfig", "whisper"), ("CLIPConfig", "clip")])
def test_a_model_of_another_kind_is_refused(kind, name, parts_of, tmp_path):
    folder = make(tmp_path / "model", "Bert")
    getattr(transformers, kind)().save_pretrained(folder)
    with pytest.raises(ConfigError, match=rf"^model: {name}, for which transformers has no Auto"):
        parts_of(folder)
