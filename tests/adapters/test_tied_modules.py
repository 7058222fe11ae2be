"""Modules that were trained whole and are tied to others: saved, loaded and exported as they were trained."""

import json
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from lowrank_ldu.adapters import (
    AdapterError,
    export_delta,
    export_lora,
    export_merged,
    load_adapter,
    read_adapter,
    save_adapter,
)
from lowrank_ldu.adapters.format import sealed
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.nn import inject, lowrank_layers
from lowrank_ldu.peft import LolduConfig

TOKENS = torch.arange(12).reshape(2, 6)
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = {
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=40, tie_word_embeddings=True)),
        "model.embed_tokens",
        "q_proj",
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
        ),
        "transformer.wte",
        "c_attn",
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
        "shared",
        "q",
    ),
    "bert": (
        lambda: BertForMaskedLM(BertConfig(**SIZES, vocab_size=40, max_position_embeddings=16)),
        "bert.embeddings.word_embeddings",
        "query",
    ),
}


def logits(model):
    inputs = {"decoder_input_ids": TOKENS} if isinstance(model, T5ForConditionalGeneration) else {}
    with torch.no_grad():
        return model.eval()(TOKENS, **inputs).logits


def assert_same(result, expected):
    """Far from rounding (1e-6), and from what a broken tie changes (0.1 and more)."""
    torch.testing.assert_close(result, expected, atol=1e-3 * float(expected.abs().max()), rtol=0.0)


def trained(tmp_path, kind, *, rows=None, untied=False):
    """An adapter with an embedding that was trained whole; what its model computes, and the base's class."""
    make, embedding, layer = MODELS[kind]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base")
    if rows:
        model.resize_token_embeddings(rows)
    if untied:
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
    inject(model, [layer], 4)
    with torch.no_grad():
        for _, host in lowrank_layers(model):
            host.offset.normal_(std=0.1)
        weight = model.get_submodule(embedding).weight
        weight.add_(0.1 * torch.randn_like(weight))
    save_adapter(model, tmp_path / "adapter", modules_to_save=[embedding])
    return logits(model), type(model)


def merged(tmp_path):
    export_merged(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base"), tmp_path / "merged")
    return tmp_path / "merged"


@pytest.mark.parametrize(
    ("kind", "untied"),
    # T5 has its output layer tied whatever its configuration says.
    [(kind, untied) for kind in MODELS for untied in (False, True) if (kind, untied) != ("t5", True)],
)
def test_a_merged_model_is_tied_as_the_adapted_one_was(tmp_path, kind, untied):
    expected, model_class = trained(tmp_path, kind, untied=untied)
    again = model_class.from_pretrained(merged(tmp_path))
    assert again.config.tie_word_embeddings is not untied
    assert_same(logits(again), expected)


def test_a_merged_model_with_new_tokens_stays_tied(tmp_path):
    expected, model_class = trained(tmp_path, "llama", rows=44)
    again = model_class.from_pretrained(merged(tmp_path))
    assert (again.config.vocab_size, again.config.tie_word_embeddings) == (44, True)
    assert_same(logits(again), expected)


def test_both_names_of_a_tied_tensor_are_written_where_the_base_has_both(tmp_path):
    expected, model_class = trained(tmp_path, "llama")
    file = tmp_path / "base" / "model.safetensors"
    base = load_file(file)
    save_file({**base, "lm_head.weight": base["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    written = load_file(merged(tmp_path) / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    again = model_class.from_pretrained(tmp_path / "merged")
    assert_same(logits(again), expected)


@pytest.mark.parametrize("layer", ["lm_head", "shared"])
def test_a_model_that_asks_whether_it_is_tied_is_not_untied(tmp_path, layer):
    """SwitchTransformers scales the input of its output layer where that is tied, and only there."""
    config = SwitchTransformersConfig(
        vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, num_experts=2, decoder_start_token_id=0
    )
    model = SwitchTransformersForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "base")
    inject(model, [layer], 4)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="is tied to another one, and SwitchTransformers.* computes something else"):
        merged(tmp_path)


def test_positions_that_are_in_no_file_are_not_missed(tmp_path):
    torch.manual_seed(0)
    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    widths = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16)
    config = MarianConfig(
        vocab_size=40,
        **sizes,
        **widths,
        pad_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = MarianMTModel(config)
    model.save_pretrained(tmp_path / "base")
    inject(model, ["lm_head"], 4)
    with torch.no_grad():
        for _, host in lowrank_layers(model):
            host.offset.normal_(std=0.1)
        expected = model.eval()(TOKENS, decoder_input_ids=TOKENS).logits
    save_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        again = MarianMTModel.from_pretrained(merged(tmp_path)).eval()(TOKENS, decoder_input_ids=TOKENS).logits
    assert_same(again, expected)


def test_lora_is_refused_where_peft_would_leave_the_other_as_it_was(tmp_path):
    trained(tmp_path, "llama")
    with pytest.raises(AdapterError, match=r"'model.embed_tokens.weight' was trained tied to 'lm_head.weight', which"):
        export_lora(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base"), tmp_path / "lora")
    expected, _ = trained(tmp_path, "llama", untied=True)
    export_lora(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base"), tmp_path / "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's, of tied modules
        plain = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "lora")
    assert_same(logits(plain), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_is_loaded_into_a_model_with_the_same_ties_only(tmp_path, tied):
    expected, model_class = trained(tmp_path, "llama", untied=not tied)
    same, other = (model_class.from_pretrained(tmp_path / "base") for _ in range(2))
    head = (other if tied else same).lm_head
    head.weight = nn.Parameter(head.weight.detach().clone())
    load_adapter(same, tmp_path / "adapter")
    assert_same(logits(same), expected)
    before = logits(other)
    message = "was tied to 'lm_head.weight' when" if tied else "is tied to 'lm_head.weight' in the model, and was not"
    with pytest.raises(AdapterError, match=message):
        load_adapter(other, tmp_path / "adapter")
    assert torch.equal(logits(other), before)


def test_an_embedding_that_peft_trained_alone_is_not_loaded_into_a_tied_model(tmp_path):
    """PEFT trains a copy of it, and leaves the output layer as it was."""
    torch.manual_seed(0)
    make, *_ = MODELS["llama"]
    base = make()
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's, of tied modules
        model = get_peft_model(base, LolduConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
        model.save_pretrained(tmp_path / "same")
        with torch.no_grad():
            model.base_model.model.model.embed_tokens.modules_to_save["default"].weight.mul_(2)
        model.save_pretrained(tmp_path / "trained")
    plain = make()
    plain.load_state_dict(state)
    load_adapter(plain, tmp_path / "same")  # nothing that would change anything
    plain = make()
    plain.load_state_dict(state)
    with pytest.raises(AdapterError, match=r"'model.embed_tokens.weight' is tied to 'lm_head.weight' in the model"):
        load_adapter(plain, tmp_path / "trained")


def test_a_file_that_does_not_say_what_was_tied(tmp_path):
    """As earlier versions wrote it: it loads, and is merged where nothing hangs on it."""
    expected, model_class = trained(tmp_path, "llama")
    path = tmp_path / "adapter" / "adapter.json"
    config = json.loads(path.read_text())
    del config["tied"], config["config_sha256"]
    path.write_bytes(sealed(config))
    model = model_class.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    assert_same(logits(model), expected)
    with pytest.raises(AdapterError, match=r"'model.embed_tokens.weight': .* does not say whether it was tied to"):
        merged(tmp_path)


@pytest.mark.parametrize("tied", [[], {"head.weight": ["a"]}, {"model.embed_tokens.weight": "lm_head.weight"}], ids=str)
def test_ties_that_are_none(tmp_path, tied):
    trained(tmp_path, "llama")
    path = tmp_path / "adapter" / "adapter.json"
    config = json.loads(path.read_text())
    del config["config_sha256"]
    path.write_bytes(sealed({**config, "tied": tied}))
    with pytest.raises(AdapterError, match="'tied' is .*; accepted: an object of its names"):
        read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("both", [True, False])
def test_a_layer_in_two_places_is_exported_to_both(tmp_path, both):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(8, 6))
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if both or not name.startswith("2")}
    save_file(base, tmp_path / "base.safetensors")
    assert inject(model, ["0"], 3) == ["0", "2"]
    with torch.no_grad():
        model[0].offset.normal_(std=0.1)
    save_adapter(model, tmp_path / "adapter")
    arguments = read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base.safetensors")
    export_merged(*arguments, tmp_path / "merged")
    written = load_file(tmp_path / "merged" / "base.safetensors")
    again = nn.Sequential(layer := nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8) if both else layer, nn.Linear(8, 6))
    again.load_state_dict(written, strict=both)
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert_same(again(x), model(x))
    updates = export_delta(*arguments, tmp_path / "delta")
    assert updates == ["0.weight", "2.weight"][: 1 + both]
    with pytest.raises(AdapterError, match="layer '0' stands as '2', too, where PEFT would put no pair"):
        export_lora(*arguments, tmp_path / "lora")
