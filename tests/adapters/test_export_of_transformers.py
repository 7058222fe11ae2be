"""Exports of adapters on models of transformers: what the exported model computes, loaded as anyone would load it."""

import contextlib
import copy
import json
import warnings

import pytest
import torch
from half_precision import assert_as_near, references
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from lowrank_ldu.adapters import (
    AdapterError,
    export_delta,
    export_lora,
    export_merged,
    read_adapter,
    save_adapter,
)
from lowrank_ldu.adapters.exports import base as exported_base
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.nn import inject, lowrank_layers
from lowrank_ldu.peft import LolduConfig, LolduLayer

TOKENS = torch.arange(12).reshape(2, 6)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def llama(*, tied, vocabulary=64):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=vocabulary, tie_word_embeddings=tied)
    return LlamaForCausalLM(config).eval()


def merged_copy(model):
    """A plain model with the adapter in its weights; what is tied is untied first."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, LolduLayer):
            base = module.get_base_layer()
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    return model.merge_and_unload()


def trained(model, folder, **options):
    """An adapter of PEFT's making that has moved, with what its model computes and the merged one beside."""
    with warnings.catch_warnings():
        # PEFT warns of embeddings that it saves and of tied ones, and merges them all the same.
        warnings.simplefilter("ignore", UserWarning)
        model = get_peft_model(model, LolduConfig(r=4, init_weights=False, **options)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        near = references(model, merged_copy(model), TOKENS)
    with torch.no_grad():
        assert_as_near(model(TOKENS).logits, *near)
    return near


def assert_close_logits(model, expected):
    """Far from rounding, and from what a lost module or layer changes."""
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-3 * float(expected.abs().max()), rtol=0.0)


def names_in(path):
    with open_checkpoint(path) as reader:
        return {info.name for info in reader.tensors}


def merged(tmp_path, **options):
    base = open_checkpoint(tmp_path / "base")
    export_merged(read_adapter(tmp_path / "adapter"), base, tmp_path / "merged", **options)
    return tmp_path / "merged"


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_embedding_and_output_layer_are_merged_as_they_were_trained(tmp_path, tied, options):
    """Tied weights become two, since an adapter changes one of them alone; the configuration says so."""
    llama(tied=tied).save_pretrained(tmp_path / "base")
    expected = trained(llama(tied=tied), tmp_path / "adapter", **options)
    again = LlamaForCausalLM.from_pretrained(merged(tmp_path)).eval()
    assert_as_near(again(TOKENS).logits, *expected)
    assert again.config.tie_word_embeddings is False
    if not tied:
        assert (tmp_path / "merged" / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()


def test_what_is_tied_stays_tied_where_it_was_not_trained(tmp_path):
    llama(tied=True).save_pretrained(tmp_path / "base")
    expected = trained(llama(tied=True), tmp_path / "adapter", target_modules=["q_proj"])
    again = LlamaForCausalLM.from_pretrained(merged(tmp_path)).eval()
    assert_as_near(again(TOKENS).logits, *expected)
    assert again.config.tie_word_embeddings is True
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_lora_pairs_of_embedding_and_output_layer(tmp_path, target):
    llama(tied=False).save_pretrained(tmp_path / "base")
    expected = trained(llama(tied=False), tmp_path / "adapter", target_modules=[target])
    export_lora(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base"), tmp_path / "lora")
    again = PeftModel.from_pretrained(llama(tied=False), tmp_path / "lora").eval()
    assert_as_near(again(TOKENS).logits, *expected)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_new_tokens_are_written_into_the_configuration(tmp_path, options):
    llama(tied=False).save_pretrained(tmp_path / "base")
    model = llama(tied=False)
    model.resize_token_embeddings(67)
    expected = trained(model, tmp_path / "adapter", **options)
    again = LlamaForCausalLM.from_pretrained(merged(tmp_path)).eval()
    assert again.config.vocab_size == 67
    assert_as_near(again(TOKENS).logits, *expected)


def test_new_tokens_that_only_one_of_two_tensors_has_are_refused(tmp_path):
    llama(tied=False).save_pretrained(tmp_path / "base")
    model = llama(tied=False)
    model.resize_token_embeddings(67)
    trained(model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = [name for name in tensors if "lm_head" in name]
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    with pytest.raises(
        AdapterError, match=r"tensor 'lm_head.weight' has shape \(64, 32\) in the base, and \(67, 32\) with the adapter"
    ):
        merged(tmp_path)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("stored", [BertModel, BertForSequenceClassification])
def test_a_classifier_of_other_labels_loads_from_a_base_with_or_without_a_prefix(tmp_path, stored):
    torch.manual_seed(0)
    stored(BertConfig(**SIZES, vocab_size=40)).eval().save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True)
    expected = trained(model.eval(), tmp_path / "adapter", task_type="SEQ_CLS", target_modules=["query", "value"])
    again = AutoModelForSequenceClassification.from_pretrained(merged(tmp_path)).eval()
    assert again.config.num_labels == 5
    assert_as_near(again(TOKENS).logits, *expected)


@pytest.mark.parametrize("saved", [None, ["dense"]])
def test_a_module_that_neither_base_nor_adapter_has_is_named(tmp_path, saved):
    """A masked language model has no pooler; that of the classifier was drawn at random, and not saved."""
    config = BertConfig(**SIZES, vocab_size=64)
    BertForMaskedLM(config).save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # transformers', of what is drawn at random
        model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    expected = trained(
        model, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS", modules_to_save=saved
    )
    if saved is None:
        with pytest.raises(AdapterError, match=r"BertForSequenceClassification, .*, has 'bert.pooler.dense.bias', and"):
            merged(tmp_path)
        return
    again = BertForSequenceClassification.from_pretrained(merged(tmp_path)).eval()
    assert_close_logits(again, expected[0].float())


def test_a_native_head_of_other_labels_is_written_into_the_configuration(tmp_path):
    llama(tied=False).save_pretrained(tmp_path / "base")
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5, pad_token_id=0).eval()
    inject(model, ["q_proj"], 4)
    save_adapter(model, tmp_path / "adapter", modules_to_save=["score"])
    again = LlamaForSequenceClassification.from_pretrained(merged(tmp_path), pad_token_id=0).eval()
    assert_close_logits(again, model(TOKENS).logits)


def test_a_head_of_another_shape_that_is_no_classifier_is_refused(tmp_path):
    llama(tied=False).save_pretrained(tmp_path / "base")
    model = llama(tied=False)
    model.model.norm.weight = torch.nn.Parameter(torch.ones(1))
    trained(model, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["norm"])
    message = r"tensor 'model.norm.weight' has shape \(1,\) in the adapter and \(32,\) in the base, which config.json"
    with pytest.raises(AdapterError, match=message):
        merged(tmp_path)


def llava():
    torch.manual_seed(0)
    text = {"model_type": "llama", **SIZES, "num_key_value_heads": 2, "vocab_size": 64}
    vision = {"model_type": "clip_vision_model", **SIZES, "image_size": 16, "patch_size": 4}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).eval()


BOTH_TOWERS = r".*(language_model|vision_tower).*\.(q_proj|fc1)"


@pytest.mark.parametrize("modules", [None, ["lm_head"]], ids=str)
def test_names_that_transformers_converts(tmp_path, modules):
    """On disk `language_model.model.` and `vision_tower.`, in the model `model.language_model.` and so on."""
    llava().save_pretrained(tmp_path / "base")
    expected = trained(llava(), tmp_path / "adapter", target_modules=BOTH_TOWERS, modules_to_save=modules)
    again = LlavaForConditionalGeneration.from_pretrained(merged(tmp_path)).eval()
    assert_as_near(again(TOKENS).logits, *expected)
    arguments = read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base")
    export_lora(*arguments, tmp_path / "lora")
    with (
        pytest.warns(UserWarning, match=r"and not 'lm_head\.weight', which was trained whole")
        if modules
        else contextlib.nullcontext()
    ):
        names = export_delta(*arguments, tmp_path / "delta")
    assert {name.split(".")[0] for name in names} == {"language_model", "vision_tower"}
    stored = names_in(tmp_path / "base")
    assert names_in(tmp_path / "merged") == stored
    plain = PeftModel.from_pretrained(llava(), tmp_path / "lora").eval()
    assert_as_near(plain(TOKENS).logits, *expected)


def test_samples_tell_the_names_where_transformers_does_not(tmp_path, monkeypatch):
    llava().save_pretrained(tmp_path / "base")
    expected = trained(llava(), tmp_path / "adapter", target_modules=BOTH_TOWERS)
    monkeypatch.setattr(exported_base, "architecture_of", lambda *_: None)
    again = LlavaForConditionalGeneration.from_pretrained(merged(tmp_path)).eval()
    assert_as_near(again(TOKENS).logits, *expected)
    # Of a module that was trained whole there are no samples.
    trained(llava(), tmp_path / "adapter", target_modules=BOTH_TOWERS, modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match=r"'lm_head.weight': .* may have it as 'language_model.lm_head.weight'"):
        merged(tmp_path, overwrite=True)


@pytest.mark.parametrize("change", [{"model_type": "none"}, {"num_hidden_layers": 10**7}], ids=str)
def test_an_embedding_that_may_be_tied_is_refused_where_nothing_tells(tmp_path, change):
    """Of a model that transformers does not know, and of one that nobody can build."""
    llama(tied=True).save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | change))
    trained(llama(tied=True), tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(AdapterError, match=r"'model.embed_tokens.weight' may be tied .*; accepted: the base saved"):
        merged(tmp_path)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | change | {"tie_word_embeddings": False}))
    merged(tmp_path)


@pytest.mark.parametrize("target", ["word_embeddings", "decoder"])
def test_every_pair_that_is_untied_is_written(tmp_path, target):
    """The configuration unties all pairs: the bias of a masked language model's head as well."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=40)).eval()
    model.cls.predictions.bias.data.normal_()
    model.save_pretrained(tmp_path / "base")
    base = copy.deepcopy(model)
    inject(model, [target], rank=4)
    with torch.no_grad():
        next(layer for _, layer in lowrank_layers(model)).offset.normal_(std=0.3)
    save_adapter(model, tmp_path / "adapter")
    again, loading = BertForMaskedLM.from_pretrained(merged(tmp_path), output_loading_info=True)
    assert not loading["missing_keys"]
    assert_as_near(again.eval()(TOKENS).logits, *references(model, base, TOKENS))


def test_an_embedding_of_a_base_without_its_head_is_refused(tmp_path):
    """The class that the base was saved as ties nothing; the adapted one does."""
    model = llama(tied=True)
    model.model.save_pretrained(tmp_path / "base")
    trained(model, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(AdapterError, match="may be tied to another one, .* accepted: the base saved as the class"):
        merged(tmp_path)


def test_updates_of_two_layers_that_are_tied_have_names_of_their_own(tmp_path):
    llama(tied=True).save_pretrained(tmp_path / "base")
    trained(llama(tied=True), tmp_path / "adapter", target_modules=["embed_tokens", "lm_head"])
    names = export_delta(read_adapter(tmp_path / "adapter"), open_checkpoint(tmp_path / "base"), tmp_path / "delta")
    assert sorted(names) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert set(load_file(tmp_path / "delta" / "delta.safetensors")) == set(names)
