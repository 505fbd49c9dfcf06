"""Every method of the installed PEFT: it trains what PEFT itself would train, or is refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from variants.bridge.methods import METHODS, OWN_FIELDS
from variants.bridge.options import config_class, defaults
from variants.core.target_modules import inside
from variants.core.training_state import restore_weights, weights
from variants.core.variant import Step
from variants.peft import Peft

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INSTALLED = sorted(kind.value.lower() for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING)
RUNNING = [method for method in INSTALLED if method in METHODS and not METHODS[method].refused]
HEAD = ("bert.pooler", "classifier")
STEPS = 8
# Settings that fit layers of width 16; the others have PEFT's defaults.
SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2},
    "adamss": {"r": 8, "num_subspaces": 2},
    "c3a": {"block_size": 8},
    "gralora": {"r": 8},
    "fourierft": {"n_frequency": 64},
    "miss": {"r": 4},
    "psoft": {"r": 8},
    "pvera": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": [5, 6, 7]},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "vera": {"r": 4},
    "waveft": {"n_frequency": 64},
    **{method: {"num_virtual_tokens": 4} for method, kind in METHODS.items() if kind.layers == "none"},
}
# Where PEFT has no choice of its own for BERT, or takes the head as well.
NAMED = {"ln_tuning": ["LayerNorm"], "osf": ["query", "value"]}


@functools.cache
def pristine() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=32, **sizes, **dropout)
    model = transformers.BertForSequenceClassification(config)
    for parameter in model.parameters():  # biases too, which start at zero and have something to be scaled
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def bert() -> Any:
    return copy.deepcopy(pristine())


class Run:
    """A method on a tiny BERT."""

    def __init__(self, method: str, targets: Any = None, options: Mapping[str, Any] | None = None) -> None:
        model = bert()
        chosen = {**SMALL.get(method, {}), **(options or {})}
        self.variant = Peft(method=method, targets=targets if targets else NAMED.get(method), options=chosen)
        self.variant.plan(STEPS)
        self.variant.check(model, HEAD)
        torch.manual_seed(1)
        self.model = self.variant.attach(model, HEAD)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.0)
        self.losses: list[float] = []

    def train(self) -> Run:
        self.model.train()
        for index in range(1, STEPS + 1):
            step = Step(index, STEPS, self.optimizer, None)
            penalty = self.variant.penalty()
            loss = F.cross_entropy(self.model(**inputs()).logits, inputs()["input_ids"][:, 1] % 2)
            (loss if penalty is None else loss + penalty).backward()
            self.optimizer.step()
            self.variant.on_update(step)
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
        self.variant.on_train_end(step)
        return self

    def adapted(self) -> dict[str, int]:
        """Sizes of what trains outside the head."""
        found = self.model.named_parameters()
        return {name: p.numel() for name, p in found if p.requires_grad and not inside(name, HEAD)}

    @torch.no_grad()
    def output(self) -> torch.Tensor:
        return self.model.eval()(**inputs()).logits


@functools.cache
def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 40, (16, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[:8, 5:] = ids[:8, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@functools.cache
def trained(method: str) -> Run:
    """One training of a method, with the layers that PEFT chooses."""
    return Run(method).train()


def by_hand(method: str, target_modules: Any) -> dict[str, int]:
    """Sizes of what PEFT trains outside the head when it is used without the bridge."""
    settings = dict(SMALL.get(method, {}))
    if method == "adalora":
        settings["total_step"] = STEPS
    if METHODS[method].layers == "none":
        settings["task_type"] = "SEQ_CLS"
    if target_modules is not None:
        settings["target_modules"] = target_modules
    torch.manual_seed(1)
    model = peft.get_peft_model(bert(), config_class(method)(**settings))
    found = model.named_parameters()
    return {name: p.numel() for name, p in found if p.requires_grad and not inside(name, HEAD)}


def test_no_method_of_peft_is_unknown_to_the_bridge():
    assert set(INSTALLED) == set(METHODS), "try it, and either test it or say why it can't run"


@pytest.mark.parametrize("method", [method for method, kind in METHODS.items() if kind.refused])
def test_what_cannot_work_here_is_refused_in_a_line_that_says_why(method):
    with pytest.raises(ValueError, match=rf"^method: '{method}', allowed: adalora, adamss, [^\n]*; it [^\n]+$"):
        Peft(method=method, targets=None)


@pytest.mark.parametrize("method", RUNNING)
def test_it_trains_what_peft_itself_trains_and_lowers_the_loss(method):
    start, end = Run(method), trained(method)
    assert start.adapted() == by_hand(method, NAMED.get(method)) and start.adapted()
    assert end.losses[-1] < end.losses[0]
    before, after = dict(start.model.named_parameters()), dict(end.model.named_parameters())
    assert not [name for name in start.adapted() if torch.equal(before[name], after[name])]


@pytest.mark.parametrize("method", [method for method in RUNNING if METHODS[method].layers == "linear"])
def test_all_linear_means_every_linear_layer_outside_the_head(method):
    linear = [name for name, m in bert().named_modules() if isinstance(m, nn.Linear) and not inside(name, HEAD)]
    assert len(linear) == 12
    assert Run(method, "all-linear").adapted() == by_hand(method, linear)


@pytest.mark.parametrize("method", [method for method in RUNNING if METHODS[method].layers == "own"])
def test_a_method_for_other_layers_does_not_take_the_default_of_lora(method):
    options = SMALL.get(method, {})
    with pytest.raises(ValueError, match=rf"^targets: 'all-linear', allowed with method: {method}, which is not made "):
        Peft(method=method, options=options)
    assert Peft(method=method, targets=None, options=options)
    assert Peft(method=method, targets=["query"], options=options)


@pytest.mark.parametrize("method", RUNNING)
def test_saved_and_loaded_into_a_fresh_model_it_gives_the_same_bits(method):
    run, again = trained(method), Run(method)
    restore_weights(again.model, again.variant, copy.deepcopy(weights(run.model, run.variant, run.optimizer)))
    assert torch.equal(again.output(), run.output()) and again.variant.ranks() == run.variant.ranks()


@pytest.mark.parametrize("method", RUNNING)
def test_within_disabled_it_is_the_base_model(method):
    run, base = trained(method), bert()
    output, state = run.output(), run.model.state_dict()
    for name in base.state_dict():
        if inside(name, HEAD):
            found = [key for key in state if inside(key, HEAD) and key.endswith(name.rpartition(".")[2])]
            found = [key for key in found if ".original_module." not in key and inside(key, [module_of(name)])]
            base.state_dict()[name].copy_(state[found[0]])
    with run.variant.disabled(), torch.no_grad():
        torch.testing.assert_close(run.output(), base.eval()(**inputs()).logits)
    assert torch.equal(run.output(), output)


def module_of(name: str) -> str:
    return next(module for module in HEAD if inside(name, [module]))


VARIED = [  # options that change what is written
    *({"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}, {"use_dora": True}, {"rank_pattern": {"query": 2}}),
    *({"trainable_token_indices": [5, 6]}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}),
]


@pytest.mark.parametrize(
    ("method", "options"), [*((method, {}) for method in RUNNING), *(("lora", options) for options in VARIED)], ids=str
)
def test_peft_loads_what_goes_out_and_it_has_as_many_parameters_as_are_reported(method, options, tmp_path):
    run = Run(method, options=options).train()
    output, reported = run.output(), run.variant.effective_parameters() or sum(run.adapted().values())
    endings = {part for name in run.adapted() for part in name.replace(".default", "").split(".")[-2:]}
    model = run.variant.to_peft(run.model, HEAD)
    for config in model.peft_config.values():
        config.task_type, config.modules_to_save = "SEQ_CLS", list(HEAD)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    fresh = bert()
    for module in HEAD:  # a head that nobody has trained
        for parameter in fresh.get_submodule(module).parameters():
            nn.init.normal_(parameter)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs()).logits, output, rtol=1e-5, atol=1e-6)
    saved = {
        name: v.numel() for name, v in peft.utils.load_peft_weights(str(tmp_path)).items() if not inside(name, HEAD)
    }
    if METHODS[method].layers != "none":  # a prompt goes out as what it comes to
        # Beside what was trained PEFT writes what it drew, so that it need not be drawn again.
        assert sum(size for name, size in saved.items() if name.rpartition(".")[2] in endings) == reported


@pytest.mark.parametrize("method", RUNNING)
def test_the_reported_rank_is_that_of_the_update(method):
    run = trained(method)
    ranks = run.variant.ranks()
    assert bool(ranks) == METHODS[method].has_rank
    for name, rank in ranks.items():
        layer = run.model.base_model.model.get_submodule(name)
        assert torch.linalg.matrix_rank(layer.get_delta_weight("default").detach().double(), rtol=1e-6) == rank


# -- options --------------------------------------------------------------------------------------

# What is read when an adapter is saved, loaded or moved; and by AdaLoRA's own forward, which `penalty` calls.
LATER = {"save_only_topk_weights", "orth_reg_weight"}


@pytest.mark.parametrize("method", RUNNING)
def test_no_option_is_taken_that_peft_never_reads(method, monkeypatch):
    cls, read = config_class(method), set()
    fields = [field.name for field in dataclasses.fields(cls) if field.init]

    class Recorded(cls):
        def __getattribute__(self, name):
            if name in fields and sys._getframe(1).f_code.co_name not in ("to_dict", "_asdict_inner", "asdict"):
                read.add(name)
            return super().__getattribute__(name)

    make = Peft._config

    def recorded(self, names):
        config = make(self, names)
        config.__class__ = Recorded
        return config

    monkeypatch.setattr(Peft, "_config", recorded)
    run = Run(method)
    read.clear()
    run = Run(method).train()
    known = {*OWN_FIELDS, *METHODS[method].unread, *METHODS[method].needs, *LATER}
    assert run.losses and not set(fields) - read - known


ODD: dict[str, Any] = {  # values of options whose kind does not say one
    "rank_pattern": {"query": 1},
    "alpha_pattern": {"query": 64},
    "alora_invocation_tokens": [1],
    "target_svd_config": {"query": 2},
    "megatron_core": "other",
    "tokenizer_name_or_path": "nobody/nothing",
    "tokenizer_kwargs": {"a": 1},
    "prompt_tuning_init_text": "a text",
    "random_seed": 5,
}
ALL_IDLE = [(method, option) for method in RUNNING for option in (*METHODS[method].unread, *METHODS[method].needs)]
# These stop in mid-run, or act and lack what is said of them.
STOPPING = {("pvera", "generator_seed"), ("adalora", "rank_pattern")}
IDLE = [found for found in ALL_IDLE if found[0] != "lora" and found not in STOPPING]


def value_of(method: str, option: str) -> Any:
    usual = defaults(config_class(method))[option]
    if option in ODD:
        return ODD[option]
    if isinstance(usual, bool):
        return not usual
    if isinstance(usual, int):
        return usual + 1
    return usual / 2 + 0.25 if isinstance(usual, float) else 3 if option.startswith(("encoder", "asa")) else {"a": 1}


@pytest.mark.parametrize(("method", "option"), ALL_IDLE)
def test_an_option_that_would_do_nothing_is_refused(method, option):
    options = {**SMALL.get(method, {}), option: value_of(method, option)}
    with pytest.raises(ValueError, match=rf"^options\.{option}: [^\n]*, allowed[^\n]+$"):
        Peft(method=method, targets=None, options=options)


@pytest.mark.parametrize(("method", "option"), IDLE)
def test_and_it_does_nothing_indeed(method, option, monkeypatch):
    kind = dataclasses.replace(METHODS[method], unread={}, needs={})
    monkeypatch.setitem(METHODS, method, kind)
    try:
        run = Run(method, options={option: value_of(method, option)})
    except ValueError:
        return  # PEFT refuses it, too
    assert torch.equal(run.train().output(), trained(method).output()), "PEFT reads it now: allow it"


@pytest.mark.parametrize("tokens", [[], [5, 5], [-1], [40], [True]])
def test_tokens_that_are_not_there_or_twice_are_refused(tokens):
    variant_of = functools.partial(Peft, method="trainable_tokens", targets=None)
    with pytest.raises(
        ValueError, match=r"^options.token_indices: \[.*\], allowed: (numbers of|a list of: a whole number)"
    ):
        variant_of(options={"token_indices": tokens}).check(bert(), HEAD)


# -- prompts --------------------------------------------------------------------------------------


def decoder(cls: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{cls}Config")(
        vocab_size=40, num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **sizes
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{cls}ForSequenceClassification")(config)


@pytest.mark.parametrize("method", ["prefix_tuning", "cartridge"])
def test_keys_before_it_leave_the_last_token_where_it_was(method):
    variant = Peft(method=method, targets=None, options=SMALL[method])
    model = variant.attach(decoder("Llama"), ["score"]).eval()
    with torch.no_grad():
        padded = model(**inputs()).logits[:8]
        alone = model(**{name: value[:8, :5] for name, value in inputs().items()}).logits
    torch.testing.assert_close(padded, alone)


def test_without_a_trainer_a_prompt_is_for_words_if_there_is_no_head():
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    for head, wrapper in (((), "PeftModelForCausalLM"), (("score",), "PeftModelForSequenceClassification")):
        cls = transformers.GPT2ForSequenceClassification if head else transformers.GPT2LMHeadModel
        variant = Peft(method="prompt_tuning", targets=None, options={"num_virtual_tokens": 2})
        assert type(variant.attach(cls(config), head)).__name__ == wrapper


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_model_that_can_have_no_prompt_is_refused_in_a_line(method):
    config = transformers.AlbertConfig(
        vocab_size=40, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.AlbertForSequenceClassification(config)
    with pytest.raises(ValueError, match=rf"^method: {method}, which AlbertForS[^\n]* can't have: [^\n]+$"):
        Peft(method=method, targets=None, options=SMALL[method]).attach(model, ["albert.pooler", "classifier"])


@pytest.mark.parametrize("count", [None, 0, -1, 2.5, True])
def test_a_prompt_has_a_length(count):
    with pytest.raises(ValueError, match=rf"^options.num_virtual_tokens: {count}, allowed: a whole number ≥ 1$"):
        Peft(method="prompt_tuning", targets=None, options={} if count is None else {"num_virtual_tokens": count})
