"""MELoRA by its definition: block-diagonal A and B, LoRA's own where there is one block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_models import OPTIONS, batches_of, bert, request_of
from torch import nn

from lowrank_ldu.finetuning import get_method
from lowrank_ldu.finetuning.methods.melora import MeloraLinear


def layer_of(rows, columns, r, n, alpha, dtype=torch.float64):
    torch.manual_seed(0)
    layer = MeloraLinear(nn.Linear(columns, rows, dtype=dtype), r=r, n=n, lora_alpha=alpha)
    with torch.no_grad():
        layer.lora_B.normal_()
    return layer


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.5, 1, 3]))
def test_the_update_is_a_product_of_block_diagonal_matrices(n, r, more_rows, more_columns, alpha):
    rows, columns = n * (r + more_rows), n * (r + more_columns)
    layer = layer_of(rows, columns, r, n, alpha)
    x = torch.randn(2, 3, columns, dtype=torch.float64)
    a, b = (torch.block_diag(*blocks) for blocks in (layer.lora_A, layer.lora_B))
    assert a.shape == (n * r, columns)
    assert b.shape == (rows, n * r)

    expected = x @ layer.weight.T + layer.bias + alpha / r * (x @ a.T @ b.T)

    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merge()(x), expected)
    assert torch.linalg.matrix_rank(layer.delta_weight()) == n * r
    assert sum(value.numel() for value in layer.parameters() if value.requires_grad) == r * (rows + columns)


def test_one_mini_lora_is_the_lora_of_peft():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 8))
    layer = MeloraLinear(nn.Linear(12, 8), r=3, n=1, lora_alpha=6)
    layer.base_layer.load_state_dict(base[0].state_dict())
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=["0"]))
    lora = model.base_model.model[0]
    x, y = torch.randn(5, 12), torch.randn(5, 8)
    with torch.no_grad():
        layer.lora_B.normal_()
        lora.lora_A["default"].weight.copy_(layer.lora_A[0])
        lora.lora_B["default"].weight.copy_(layer.lora_B[0])

    torch.testing.assert_close(layer(x), model(x))
    for module in (layer, model):
        nn.functional.mse_loss(module(x), y).backward()
    torch.testing.assert_close(layer.lora_A.grad[0], lora.lora_A["default"].weight.grad)
    torch.testing.assert_close(layer.lora_B.grad[0], lora.lora_B["default"].weight.grad)


@pytest.mark.parametrize("n", [1, 4])
def test_the_start_is_that_of_lora_for_each_block(n):
    torch.manual_seed(0)
    layer = MeloraLinear(nn.Linear(256, 128), r=8, n=n)
    reference = torch.empty(8, 256 // n)
    nn.init.kaiming_uniform_(reference, a=5**0.5)
    assert not layer.lora_B.any()
    bound = (n / 256) ** 0.5
    assert 0.99 * bound < layer.lora_A.abs().max() <= bound
    assert reference.abs().max() <= bound
    assert layer.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_a_bfloat16_base_has_numbers_of_float32():
    layer = layer_of(8, 8, 1, 2, 1, torch.bfloat16)
    assert layer.lora_A.dtype == torch.float32
    out = layer(torch.randn(2, 8, dtype=torch.bfloat16))
    assert out.dtype == layer.merge().weight.dtype == torch.bfloat16


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    layer = MeloraLinear(nn.Linear(8, 8), r=2, n=2, lora_dropout=0.5)
    with torch.no_grad():
        layer.lora_B.normal_()
    x = torch.randn(4, 8)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_the_file_holds_the_trained_numbers_alone(tmp_path):
    method = get_method("melora")
    found = method.prepare(bert(), OPTIONS["melora"], request_of("bert"))
    found.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["trained.safetensors"]
    tensors = load_file(tmp_path / "trained.safetensors")
    assert sum(value.numel() for value in tensors.values()) == found.expected_numbers + 3 * 17
    assert {name.rpartition(".")[2] for name in tensors} == {"lora_A", "lora_B", "weight", "bias"}


def test_merging_leaves_the_prepared_model_as_it_is():
    found = get_method("melora").prepare(bert(), OPTIONS["melora"], request_of("bert"))
    plain = found.merged()
    assert not any(isinstance(module, MeloraLinear) for module in plain.modules())
    assert sum(isinstance(module, MeloraLinear) for module in found.model.modules()) == 4
    found.model(**batches_of("bert")[0]).loss.backward()
