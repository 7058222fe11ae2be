"""What methods write, read again, and do after each step."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from test_methods_train import logits, prepared, trained
from tiny_models import OPTIONS, batches_of, bert, gpt2, request_of, roberta
from torch import nn

from lowrank_ldu.errors import AdapterError, OptionError
from lowrank_ldu.finetuning import METHODS, get_method
from lowrank_ldu.nn.host import hosts

FITTED = ["ldu-pivots", "ldu-basis"]


def other_batches():
    torch.manual_seed(9)
    return [{"input_ids": torch.randint(3, 30, (4, 6)), "labels": torch.tensor([0, 2, 2, 1])}]


@pytest.mark.parametrize("options", [{}, {"fit_rank": None, "fit_budget": 40}], ids=["rank", "budget"])
@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_adapter_is_loaded_where_others_were_fitted(name, options, tmp_path):
    def fitted(batches):
        return get_method(name).prepare(bert(), OPTIONS[name] | options, request_of("bert", batches=batches))

    found = fitted(batches_of("bert"))
    trained(found, "bert", name, steps=2)
    found.save(tmp_path / "saved")

    again = fitted(other_batches())
    assert not torch.equal(logits(again.model.eval(), "bert"), logits(found.model.eval(), "bert"))
    again.load(tmp_path / "saved")

    torch.testing.assert_close(logits(again.model.eval(), "bert"), logits(found.model, "bert"), rtol=0, atol=1e-5)
    assert again.expected_numbers == again.trained_numbers == found.expected_numbers
    assert again.shared_files == found.shared_files
    before = logits(again.model, "bert")
    trained(again, "bert", name, steps=2)
    assert not torch.equal(logits(again.model.eval(), "bert"), before)
    again.save(tmp_path / "again")
    assert all((tmp_path / "again" / file).is_file() for file in again.shared_files)


def test_the_folder_of_a_fitted_adapter_is_whole(tmp_path, monkeypatch):
    found = prepared("ldu-basis", "bert")
    trained(found, "bert", "ldu-basis", steps=2)
    found.save(tmp_path / "saved")
    (basis,) = found.shared_files
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        basis,
    ]
    # Elsewhere, and in a process that does not know the basis.
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    monkeypatch.setattr("lowrank_ldu.nn.basis._KNOWN", {})
    model = PeftModel.from_pretrained(bert(), str(tmp_path / "moved")).eval()
    torch.testing.assert_close(logits(model, "bert"), logits(found.model.eval(), "bert"), rtol=0, atol=1e-5)
    assert str(tmp_path) not in (tmp_path / "moved" / "adapter_config.json").read_text()


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")  # of AdaLoRA
@pytest.mark.parametrize("name", ["lora", "pissa", "adalora", "loldu", "ldu-pivots"])
def test_peft_reads_what_a_method_saved(name, tmp_path):
    found = prepared(name, "bert")
    trained(found, "bert", name, steps=3)
    found.save(tmp_path)
    model = PeftModel.from_pretrained(bert(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(model, "bert"), logits(found.model.eval(), "bert"), rtol=0, atol=2e-5)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["task_type"] == "SEQ_CLS"
    assert "pivots_file" not in saved


@pytest.mark.parametrize("bias", ["all", "only"])
@pytest.mark.parametrize("name", ["lora", "vera", "loldu"])
def test_trained_biases_are_kept(name, bias, tmp_path):
    def start():
        options = OPTIONS[name] | {"bias": bias if bias == "all" else f"{name}_only"}
        return get_method(name).prepare(bert(), options, request_of("bert"))

    found, again = start(), start()
    biases = {each: value.clone() for each, value in found.trained().items() if each.endswith("base_layer.bias")}
    trained(found, "bert", name, steps=2)
    assert len(biases) == 4
    assert not any(torch.equal(value, found.trained()[each]) for each, value in biases.items())
    found.save(tmp_path)
    again.load(tmp_path)
    for model in (again.model, found.merged()):
        torch.testing.assert_close(logits(model.eval(), "bert"), logits(found.model.eval(), "bert"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["full", "bitfit", "melora", "lora", "vblora", "loldu"])
def test_folders_that_do_not_fit(name, tmp_path):
    found = prepared(name, "bert")
    with pytest.raises(AdapterError, match="has no .*; accepted: "):
        found.load(tmp_path / "nothing")
    other = "head" if name in {"full", "bitfit", "melora"} else "ia3"
    prepared(other, "bert").save(tmp_path / "other")
    with pytest.raises(AdapterError, match=f"is (of method 'head'|an adapter of IA3); accepted: '?(?i:{name})"):
        found.load(tmp_path / "other")
    prepared(name, "llama" if name != "bitfit" else "bert", **({} if name != "bitfit" else {"trained_whole": []})).save(
        tmp_path / "of another model"
    )
    with pytest.raises(AdapterError, match="not in both; accepted: |does not fit the prepared model"):
        found.load(tmp_path / "of another model")


def test_a_file_of_other_sizes_and_one_cut_short(tmp_path):
    method = get_method("melora")
    method.prepare(bert(), {"r": 1, "n": 4}, request_of("bert")).save(tmp_path)
    found = prepared("melora", "bert")
    with pytest.raises(AdapterError, match=r"has shape \(4, 1, 4\); accepted: \(4, 2, 4\)"):
        found.load(tmp_path)
    file = tmp_path / "trained.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(AdapterError, match="cannot be read"):
        found.load(tmp_path)
    lora = get_method("lora")
    lora.prepare(bert(), {"r": 1}, request_of("bert")).save(tmp_path / "lora")
    with pytest.raises(AdapterError, match="does not fit the prepared model .*size mismatch"):
        prepared("lora", "bert").load(tmp_path / "lora")


def test_only_the_published_form_is_projected():
    def moved(name, **options):
        found = get_method(name).prepare(bert(), OPTIONS[name] | options, request_of("bert"))
        scales = [adapter.sigma for _, host in hosts(found.model) for _, adapter, _ in host.held_adapters()]
        with torch.no_grad():
            for sigma in scales:
                sigma.fill_(1.5)
        found.after_step()
        return {float(sigma.detach()) for sigma in scales}

    assert moved("loldu") == {1.0}
    assert moved("loldu", parametrization="gram") == {1.5}
    assert moved("loldu", core="dense") == {1.5}
    assert moved("ldu-core", train_sigma=True) == {1.5}


def test_adalora_comes_to_its_budget_and_goes_on_from_its_state(tmp_path):
    def ranks(found):
        return sum(int(value.any()) for name, tensor in found.trained().items() if "lora_E" in name for value in tensor)

    def start():
        options = {"init_r": 4, "target_r": 2, "tfinal": 2, "lora_alpha": 16}
        return get_method("adalora").prepare(bert(), options, request_of("bert", total_steps=8))

    def sgd(found):
        return torch.optim.SGD(found.parameter_groups(0.1, head_lr=None, weight_decay=0.0))

    def steps(found, optimizer, numbers):
        for number in numbers:
            found.model(**batches_of("bert")[number % 2]).loss.backward()
            optimizer.step()
            found.after_step()
            optimizer.zero_grad()

    whole, first = start(), start()
    optimizers = [
        torch.optim.SGD(found.parameter_groups(0.1, head_lr=None, weight_decay=0.0)) for found in (whole, first)
    ]
    assert ranks(whole) == 0
    steps(whole, optimizers[0], range(8))
    assert whole.steps == 8
    assert ranks(whole) == 2 * 4

    steps(first, optimizers[1], range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again = start()
    again.model.load_state_dict(first.model.state_dict())
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    steps(again, sgd(again), range(3, 8))

    assert all(torch.equal(value, whole.trained()[name]) for name, value in again.trained().items())
    with pytest.raises(RuntimeError, match="accepted: after_step between the optimizer's step and its zero_grad"):
        again.after_step()


@pytest.mark.parametrize("name", ["full", "lora", "ia3", "unilora", "adalora", "melora", "bitfit"])
def test_matrices_decay_and_vectors_do_not(name):
    found = prepared(name, "bert")
    groups = found.parameter_groups(1e-3, head_lr=5e-3, weight_decay=0.1)
    trained_values = {id(value) for value in found.trained().values()}
    assert sorted(id(value) for group in groups for value in group["params"]) == sorted(trained_values)
    for group in groups:
        assert group["lr"] == (5e-3 if group["name"].startswith("head") else 1e-3)
        vectors = [value.numel() == max(value.shape) for value in group["params"]]
        assert all(vectors) if group["name"].endswith("vectors") else not any(vectors)
        assert group["weight_decay"] == (0.0 if group["name"].endswith("vectors") else 0.1)
    names = {group["name"] for group in groups}
    assert {"head", "head vectors"} <= names
    assert ("adapter" in names) == (name not in {"ia3", "unilora", "bitfit"})
    alone = found.parameter_groups(1e-3, head_lr=None, weight_decay=0.0)
    assert {group["lr"] for group in alone} == {1e-3}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("loldu", {}, {"raw coordinates": 2e-2, "scales": 3e-3}),
        ("loldu", {"parametrization": "gram"}, {"unit coordinates": 2e-2, "scales": 3e-3}),
        ("ldu-core", {}, {"unit coordinates": 2e-2}),
        ("ldu-basis", {"bias": "all"}, {"unit coordinates": 2e-2, "biases vectors": 2e-2}),
    ],
)
def test_cores_of_ldu_have_rates_of_their_own_and_do_not_decay(name, options, expected):
    found = get_method(name).prepare(bert(), OPTIONS[name] | options, request_of("bert"))
    groups = found.parameter_groups(2e-2, head_lr=1e-3, weight_decay=0.1)
    assert {group["name"]: group["lr"] for group in groups} == expected | {"head": 1e-3, "head vectors": 1e-3}
    assert {group["name"] for group in groups if group["weight_decay"]} == {"head"}
    values = [id(value) for group in groups for value in group["params"]]
    assert sorted(values) == sorted(id(value) for value in found.trained().values())


ADAPTING = [name for name in METHODS if name in OPTIONS or name in {"ia3", "beft"}]


def moved_and_merged(name, model, **others):
    found = get_method(name).prepare(model, OPTIONS.get(name, {}), request_of("bert", **others))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in found.trained().values():
            value.add_(0.1 * torch.randn_like(value))
    assert found.expected_numbers == found.trained_numbers
    expected, got = (logits(each.eval(), "bert") for each in (found.model, found.merged()))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    return found, expected


@pytest.mark.parametrize("name", ADAPTING)
def test_a_head_of_several_layers_is_kept_in_what_is_merged(name, tmp_path):
    found, expected = moved_and_merged(name, roberta())
    assert len([each for each in found.trained() if found.in_whole(each)]) == 4
    found.save(tmp_path)
    again = get_method(name).prepare(roberta(), OPTIONS.get(name, {}), request_of("bert"))
    again.load(tmp_path)
    torch.testing.assert_close(logits(again.model.eval(), "bert"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted({*ADAPTING} - {"oft", "psoft", "beft", "melora"}))
def test_layers_that_store_their_weights_transposed(name):
    request = {"targets": ["c_attn"], "trained_whole": [], "task_type": "CAUSAL_LM", "batches": batches_of("llama")}
    moved_and_merged(name, gpt2(), **request)


@pytest.mark.parametrize("name", ["oft", "psoft", "beft", "melora"])
def test_methods_that_do_not_take_them(name):
    with pytest.raises(OptionError, match="Conv1D"):
        get_method(name).prepare(gpt2(), OPTIONS.get(name, {}), request_of("llama", targets=["c_attn"]))


def test_an_update_without_a_place_in_the_weights_is_refused():
    found = prepared("beft", "llama")
    with pytest.raises(OptionError, match="the update cannot be merged: Base layer has no bias"):
        found.merged()


def test_weights_that_share_memory_are_kept(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    def tied(value):
        torch.manual_seed(value)
        return get_method("full").prepare(Tied(), {}, request_of("bert", trained_whole=[]))

    found, again, x = tied(0), tied(1), torch.randn(2, 4)
    found.save(tmp_path)
    again.load(tmp_path)
    assert torch.equal(again.model(x), found.model(x))
    assert again.expected_numbers == 4 * 4 + 4 + 4
