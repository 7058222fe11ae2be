"""Tests of PEFT's that are not run, and why: a test that is skipped and not listed here is a failure."""

import re

_OTHER = "another method"
_NAMES = "asserts LoRA's own names or numbers of parameters"
_HUB = "needs weights from the hub"
_TARGETS = "target_parameters: not a claimed feature"
_DEVICE = "needs an accelerator"

# Pattern of the test's id, class included, to the reason.
LEFT_OUT = {
    r"::test_\w*(ia3|adalora|loha|lokr|_oft|boft|hra|miss|lntuning|vera|randlora|vblora|fourierft|gralora"
    r"|monteclora|glora|shira|osf|bnb)(_|\[|$)": _OTHER,
    r"::test_.*train\w*ble_token": "trainable_token_indices: not a claimed feature",
    r"::test_\w*dora": "DoRA is an option of LoRA",
    r"_embed_scale_is_applied\[True\]": "DoRA is an option of LoRA",
    r"::test_\w*(prompt_|prefix_tuning|prompt_learning)": "prompt learning",
    r"ExtractionModel::test_passing_input_embeds_works": "prompt learning (PEFT skips the others)",
    r"adaption_prompt": _OTHER,
    r"rejects_shared_state_tuners": "other methods, which share numbers between layers",
    r"mha|multihead_attention": "nn.MultiheadAttention: not a claimed layer",
    r"trainer_compile": "needs the datasets package",
    r"layer_replication": "layer_replication: not a claimed feature",
    r"lora_bias|non_finite_bias": "lora_bias is an option of LoRA",
    r"[Mm]ixed_model|without_mutation\[True\]": "PeftMixedModel takes a closed list of PEFT's own methods",
    r"target_parameters": _TARGETS,
    r"different_scaling\[(ties|dare|magnitude)": "LoRA's approximations of a sum; LoLDU's sum is exact",
    r"weighted_combination_of_adapters\[.*Gemma3": "PEFT skips models by the name of Gemma",
    r"test_active_adapter\[Vanilla MLP 5": "PEFT skips it with modules_to_save",
    r"opt_timing|mixed_batch_lora_adapter_compile|_gpu_large": _DEVICE,
    r"stable_diffusion|layers_diffusion|automodel$|test_transformers_model|weight_conversion|irregular_targets": _HUB,
    r"module_type|adapter_model_type|peft_types|nb_params|requires_grad\w*_irregular|injected_layers": _NAMES,
    r"disable_adapter_with_bias_warns": "PEFT never runs it, and it fails on itself (WarningsChecker.warnings)",
    r"cat_with_rank_pattern": "a sum of adapters of different ranks: refused by design",
    r"LoraConversion::test_(targeted_modules|converted_lora_approx|\w*multiple_adapters)": "LoKr's own names and sizes",
    r"unsharded_state_dict|second_adapter_with_all_linear": _NAMES,
    r"from_state_dict_(missing|extra)_keys|classifier_head": _NAMES,
    r"prefix_removal": _HUB,
    r"load_resized_embedding": "another base, refused by its sample; base_check='ignore' takes it",
    r"whisper|Whisper|extended_vocab|embedding_size_not_reduced|GPTNeoX": _HUB,
    r"config_construction\[Vanilla MLP (chosen|fitted)": "a file's ranks are written into a copy of the configuration",
    r"status_with_modules_to_save|preserves_custom_requires_grad|Functional::test_": _NAMES,
}
_PATTERNS = [(re.compile(pattern), reason) for pattern, reason in LEFT_OUT.items()]


def reason_to_leave_out(name):
    """Return why a test is left out, None for one that is run."""
    return next((reason for pattern, reason in _PATTERNS if pattern.search(name)), None)
