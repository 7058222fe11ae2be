"""Runs that tune a tiny Llama on instructions: what is measured, what is saved, and how it scales."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_language_models import save_instructions, save_llama
from tiny_models import OPTIONS, batches_of, llama, request_of
from tiny_text_models import offline
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP
from typer.testing import CliRunner

from lowrank_ldu.cli.app import app
from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import METHODS, Choice, MethodRequest, get_method, load_recipe, run_recipe
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.tasks import get_kind

SETTINGS = {
    "validation_rows": 16,
    "max_length": 64,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 5,
    "learning_rate": 2e-2,
    "logging_steps": 1,
    "bf16": False,
    "dtype": "float32",
    "lm_eval_tasks": [],
    "target_modules": ["q_proj", "v_proj"],
}
OWN = {"lora": {"r": 4, "lora_alpha": 8}, "ldu-core": {"r": 16}, "loldu": {"r": 64, "alpha": 64}, "melora": {"r": 2}}
CHECKPOINTING = {"gradient_checkpointing": True}


_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder / "llama")
    save_instructions(folder / "rows.json", 80)
    return folder


def choice(base, method="lora", **settings):
    settings = {**SETTINGS, **OWN.get(method, OPTIONS.get(method, {})), **settings}
    if method in {"full", "head"}:
        settings.pop("target_modules")
    return Choice(method=method, model=str(base / "llama"), data=str(base / "rows.json"), settings=settings)


def run(base, out, **options):
    return run_recipe(load_recipe("instruct"), out, choice(base, **options), seeds=[3])[0]


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return {name: run(base, out / name, method=name, num_train_epochs=4) for name in ("lora", "ldu-core")}


def log_of(result):
    return [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]


def steps_of(result):
    return [(line["loss"], line["grad_norm"]) for line in log_of(result) if "loss" in line]


def validation_of(base):
    config = configure(load_recipe("instruct"), "alpaca", choice(base), seed=3)
    return get_kind(config.kind).load(config)


def tuned(base, result, **options):
    model = AutoModelForCausalLM.from_pretrained(base / "llama", dtype=torch.float32, **options)
    return PeftModel.from_pretrained(model, result.folder / "adapter").eval()


def logits_of(model, task, rows=range(4)):
    batch = task.collator([task.validation[row] for row in rows])
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]


@pytest.mark.parametrize("method", ["lora", "ldu-core"])
def test_a_run_learns_answers(finished, method):
    found = [loss for loss, _ in steps_of(finished[method])]
    assert sum(found[-4:]) / 4 < 0.6 * found[0]
    evaluations = [line["eval_loss"] for line in log_of(finished[method]) if "eval_loss" in line]
    assert len(evaluations) == 4
    # The least loss is the best state.
    best = min(range(4), key=evaluations.__getitem__)
    assert finished[method].record["best_step"] == 8 * (best + 1)
    assert finished[method].score == evaluations[best]
    assert finished[method].record["greater_is_better"] is False


def test_the_loss_of_an_evaluation_is_the_mean_over_all_answer_tokens(base, finished):
    task, model = validation_of(base), tuned(base, finished["lora"])
    sums, means = [], []
    for start in range(0, 16, 5):
        logits, labels = logits_of(model, task, range(start, min(start + 5, 16)))
        following, logs = labels[:, 1:], logits[:, :-1].double().log_softmax(-1)
        losses = -logs.gather(2, following.clamp(min=0)[..., None])[..., 0][following != -100]
        sums += losses.tolist()
        means += [losses.mean().item()] * len(labels)
    metrics = finished["lora"].metrics["validation"]
    assert set(metrics) == {"loss", "perplexity"}
    assert metrics["loss"] == pytest.approx(sum(sums) / len(sums), rel=1e-5)
    # What transformers would report by itself is another figure.
    assert abs(metrics["loss"] - sum(means) / len(means)) > 1e-3
    predictions = load_file(finished["lora"].folder / "predictions" / "validation.safetensors")["predictions"]
    assert predictions.shape == (16, 2)
    assert predictions[:, 1].sum() == len(sums)


def test_accumulated_batches_are_one_larger_batch(base, tmp_path):
    """Answers of two tokens and of six: the mean over a batch's tokens is not the mean of means."""
    whole, parts = (
        run(
            base,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=4,
        )
        for size in (8, 2)
    )
    assert len(steps_of(whole)) == 4
    for first, second in zip(steps_of(whole), steps_of(parts), strict=True):
        assert second == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "ldu-core"])
def test_the_saved_adapter_and_its_merged_model_give_the_same_logits(base, finished, method):
    task, model = validation_of(base), tuned(base, finished[method])
    adapted, labels = logits_of(model, task)
    frozen, _ = logits_of(AutoModelForCausalLM.from_pretrained(base / "llama", dtype=torch.float32), task)
    assert (adapted - frozen).abs().max() > 0.1
    merged, _ = logits_of(model.merge_and_unload(), task)
    filled = (labels != -100)[..., None]
    assert torch.allclose(merged * filled, adapted * filled, atol=1e-4)


def test_a_core_is_exported_as_lora(base, finished, tmp_path):
    command = ["export", str(finished["ldu-core"].folder / "adapter"), "--to", "lora", "--out", str(tmp_path / "lora")]
    done = CliRunner().invoke(app, [*command, "--base", str(base / "llama")])
    assert done.exit_code == 0, done.output
    task, model = validation_of(base), tuned(base, finished["ldu-core"])
    exported = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base / "llama"), tmp_path / "lora").eval()
    assert next(iter(exported.peft_config.values())).peft_type.value == "LORA"
    first, second = (logits_of(each, task)[0] for each in (model, exported))
    assert torch.allclose(first, second, atol=1e-3)
    assert torch.equal(first.argmax(-1), second.argmax(-1))


@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=pytest.mark.longer)])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in {"head", "bitfit"}])
def test_checkpointed_activations_give_the_same_gradients(name, reentrant):
    def gradients(checkpointed):
        model = llama()
        if checkpointed:
            model.enable_input_require_grads()
        prepared = get_method(name).prepare(model, OPTIONS.get(name, {}), request_of("llama"))
        if checkpointed:
            options = {"use_reentrant": reentrant}
            prepared.model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        prepared.model.train()
        # Off the start, where some of them are zero.
        torch.manual_seed(5)
        with torch.no_grad():
            for value in prepared.trained().values():
                value.add_(0.02 * torch.randn_like(value))
        prepared.model(**batches_of("llama")[0]).loss.backward()
        return {key: value.grad for key, value in prepared.trained().items()}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert any(value is not None and value.abs().max() > 0 for value in plain.values())
    for key, value in plain.items():
        if value is None:
            assert checkpointed[key] is None
        else:  # what layers share is summed in another order
            torch.testing.assert_close(checkpointed[key], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["ldu-core", pytest.param("melora", marks=pytest.mark.longer)])
def test_a_run_with_checkpointed_activations_is_the_same_run(base, tmp_path, monkeypatch, method):
    calls, forward = [], LlamaMLP.forward

    def counted(self, *given, **named):
        calls.append(self.training)
        return forward(self, *given, **named)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    plain = run(base, tmp_path / "plain", method=method, max_steps=2)
    before = sum(calls)
    again = run(
        base,
        tmp_path / "again",
        method=method,
        max_steps=2,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        **CHECKPOINTING,
    )
    # Two layers in two steps, and each a second time.
    assert (before, sum(calls) - before) == (2 * 2, 2 * 2 * 2)
    assert steps_of(again) == steps_of(plain)


@pytest.mark.parametrize("method", ["lora", "ldu-core"])
def test_products_and_base_in_bfloat16_with_an_adapter_in_float32(base, tmp_path, finished, method):
    result = run(base, tmp_path, method=method, max_steps=8, bf16=True, dtype="bfloat16", use_cpu=True)
    saved = load_file(result.folder / "checkpoints" / "checkpoint-8" / "trained.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    single = [loss for loss, _ in steps_of(finished[method])][:8]
    found = [loss for loss, _ in steps_of(result)]
    assert found != single
    assert found[0] == pytest.approx(single[0], rel=0.02)
    assert found[-1] < 0.9 * found[0]


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_that_adalora_shares_out_are_loaded_into_layers_that_have_them(base, tmp_path, dtype):
    """The adapter is loaded when training is over, and again before tasks are run."""
    result = run(base, tmp_path, method="adalora", max_steps=12, init_r=4, target_r=2, tfinal=4, deltaT=1, dtype=dtype)
    evaluations = [line["eval_loss"] for line in log_of(result) if "eval_loss" in line]
    assert result.score == pytest.approx(min(evaluations), rel=1e-5 if dtype == "float32" else 1e-3)
    saved = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert sum(len(value) for name, value in saved.items() if "lora_E" in name) == 4 * 2
    assert {value.dtype for value in saved.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("method", "kind"), [("lora", "8bit"), ("lora", "4bit"), ("ldu-core", "4bit"), ("loldu", "8bit")]
)
def test_an_adapter_beside_a_quantized_base(base, tmp_path, method, kind):
    from transformers import BitsAndBytesConfig

    pytest.importorskip("bitsandbytes")
    more = {**CHECKPOINTING, "learning_rate": 5e-3} if method == "loldu" else CHECKPOINTING
    result = run(base, tmp_path, method=method, quantization=kind, num_train_epochs=2, **more)
    found = [loss for loss, _ in steps_of(result)]
    assert sum(found[-3:]) / 3 < 0.97 * found[0]
    options = {
        "8bit": {"load_in_8bit": True},
        "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    }[kind]
    if kind == "4bit":
        options["bnb_4bit_compute_dtype"] = torch.float32
    task, model = validation_of(base), tuned(base, result, quantization_config=BitsAndBytesConfig(**options))
    logits, labels = logits_of(model, task, range(16))
    loss = model.base_model.loss_function(logits, labels, vocab_size=logits.shape[-1]).item()
    assert loss == pytest.approx(result.score, rel=1e-2)


@pytest.mark.parametrize("method", ["lora", "ldu-core"])
def test_an_update_is_not_merged_into_quantized_weights(base, method):
    pytest.importorskip("bitsandbytes")
    config = configure(load_recipe("instruct"), "alpaca", choice(base, method=method, quantization="4bit"), seed=0)
    request = MethodRequest(["q_proj"], task_type="CAUSAL_LM")
    prepared = get_method(method).prepare(get_kind("causal-lm").load(config).model, config.method_options, request)
    with pytest.raises(OptionError, match="the update cannot be merged: the weight of .*q_proj' is quantized"):
        prepared.merged()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "full",
            {"dtype": "bfloat16"},
            "method is 'full', which trains parameters of the model, and dtype is",
        ),
        (
            "full",
            {"quantization": "4bit"},
            "method is 'full', which trains parameters of the model, and the base",
        ),
        ("lora", {"dtype": "float16", "modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which are"),
        ("tinylora", {"quantization": "8bit"}, "method is 'tinylora', which PEFT has not for such weights, and the ba"),
        ("unilora", {"quantization": "4bit"}, "method is 'unilora', which PEFT has not for such weights"),
        ("dora", {"quantization": "8bit"}, "method is 'dora', which PEFT has not for such weights"),
        ("melora", {"quantization": "8bit"}, "q_proj' is a Linear8bitLt; accepted: nn.Linear"),
        ("pissa", {"quantization": "4bit"}, "method 'pissa': Please initialize PiSSA under float32"),
        ("psoft", {"quantization": "4bit"}, "method 'psoft': PSOFT init requires float32"),
        ("head", {}, "trained_whole is empty with method 'head'"),
    ],
)
def test_methods_that_do_not_fit_the_base(base, tmp_path, method, settings, message):
    with pytest.raises(OptionError, match=message) as raised:
        run(base, tmp_path, method=method, **settings)
    assert len(str(raised.value).splitlines()) == 1


def test_without_bitsandbytes_a_quantized_base_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank_ldu.finetuning.tasks.causal_lm.find_spec", lambda _: None)
    with pytest.raises(OptionError, match="quantization is '8bit', and bitsandbytes is absent; accepted: 'none', or "):
        run(base, tmp_path, quantization="8bit")
