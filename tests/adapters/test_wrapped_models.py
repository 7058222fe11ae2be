"""Names in adapter files are the plain model's, whatever wraps the model that is saved."""

import pytest
import torch
from half_precision import assert_as_near, references
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from lowrank_ldu.adapters import load_adapter, save_adapter
from lowrank_ldu.nn import inject


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4))


def compiled(model):
    return torch.compile(model, backend="eager")


def checkpointed(model):
    model[0] = checkpoint_wrapper(model[0])
    return model


WRAPPERS = [compiled, nn.DataParallel, AveragedModel, checkpoint_wrapper, checkpointed]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_adapters_of_wrapped_models_load_into_plain_ones(wrap, tmp_path):
    model = plain()
    inject(model, ["0.0", "1"], rank=2)
    with torch.no_grad():
        model[1].adapter.offset.add_(0.5)
        model[0][0].adapter.offset.sub_(0.25)
    x = torch.randn(3, 8)
    near = references(model, plain(), x)
    save_adapter(wrap(model), tmp_path / "adapter")
    again = plain()
    assert load_adapter(again, tmp_path / "adapter") == ["0.0", "1"]
    assert_as_near(again(x), *near)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, AveragedModel])
def test_adapters_load_into_wrapped_models(wrap, tmp_path):
    model = plain()
    inject(model, ["1"], rank=2)
    save_adapter(model, tmp_path / "adapter")
    wrapped = wrap(plain())
    assert load_adapter(wrapped, tmp_path / "adapter") == ["1"]
