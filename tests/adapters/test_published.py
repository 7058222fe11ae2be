"""The published code's states, against a textbook version of what that code computes: dense matrices throughout."""

import copy
import math

import pytest
import torch
from half_precision import assert_as_near, references
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from lowrank_ldu.adapters import AdapterError, import_published, load_adapter, save_adapter
from lowrank_ldu.adapters.published import PUBLISHED_INITS
from lowrank_ldu.nn import unload


class Textbook(nn.Module):
    """W0 - s P L diag(z_ref) U + s P L diag(z) U, for a weight that torch parametrizes: the names come out the same."""

    def __init__(self, weight, rank, alpha, init):
        super().__init__()
        P, L, U = torch.linalg.lu(weight.detach().float())
        d = U.diagonal().clone()
        U = U / d[:, None]
        self.left, self.right = (P @ L)[:, :rank], U[:rank]
        d = d[:rank]
        mean, std = d.mean(), d.std()
        start = {
            "lu": d.clone(),
            "uniform": (torch.rand(len(d)) - 0.5) * mean.abs(),
            "s_uniform": torch.rand(len(d)) * 2 - 1,
            "normal": mean + std * torch.randn(len(d)),
            "s_normal": torch.randn(len(d)),
            "constant": torch.full_like(d, mean),
            "ones": torch.ones_like(d),
            "zeros": torch.zeros_like(d),
        }[init]
        reference = start if init in {"lu", "uniform", "normal", "constant"} else d
        self.scaling_factor = nn.Parameter(torch.tensor(alpha / rank))
        self.vector_z = nn.Parameter(start)
        self.residual = weight.detach() - self.term(reference).to(weight.dtype).detach()

    def term(self, z):
        return self.scaling_factor * self.left @ torch.diag(z) @ self.right

    def forward(self, _):
        return self.residual + self.term(self.vector_z).to(self.residual.dtype)


def base(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 24)).to(dtype)


def published(rank=8, alpha=1.0, init="lu", dtype=torch.float32, *, train_sigma=False):
    """A model of the published kind after some training, its z, and the state of the whole model."""
    model = base(dtype)
    for index in (0, 2):
        layer = model[index]
        parametrize.register_parametrization(layer, "weight", Textbook(layer.weight, rank, alpha, init))
        own = layer.parametrizations.weight
        with torch.no_grad():
            own.original.copy_(own[0].residual)  # the published code writes the residual into the weight
            own[0].vector_z += torch.randn(len(own[0].vector_z)) * 0.3
            if train_sigma:
                own[0].scaling_factor.mul_(0.8)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return model, {name: tensor for name, tensor in state.items() if name.endswith("vector_z")}, state


X = torch.linspace(-1, 1, 60).reshape(3, 20)


def assert_same(model, trained):
    """Assert that two models compute the same but for rounding, as large as that of the merged model."""
    merged = copy.deepcopy(model)
    unload(merged)
    near = references(model, merged, X)
    assert_as_near(model(X), *near)
    assert_as_near(trained(X), *near)


@pytest.mark.parametrize("init", PUBLISHED_INITS)
@pytest.mark.parametrize(("rank", "alpha"), [(8, 1.0), (16, 8.0), (2, 0.5)])
def test_outputs_are_those_of_the_published_layers(init, rank, alpha):
    trained, few, whole = published(rank, alpha, init)
    model = base()
    state = whole if init in {"uniform", "normal"} else few
    assert import_published(model, state, init=init, alpha=alpha) == ["0", "2"]
    assert_same(model, trained)
    assert not torch.allclose(base()(X), trained(X), atol=1e-3)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "0.adapter.offset",
        "2.adapter.offset",
    ]


def test_half_precision():
    trained, few, _ = published(dtype=torch.bfloat16)
    model = base(torch.bfloat16)
    import_published(model, few)
    x = X.bfloat16()
    # The published code rounds the residual and the sum of every weight to 8 bits; here only outputs are rounded.
    exact = copy.deepcopy(model).float()(x.float())
    plain = base(torch.bfloat16)(x), base(torch.bfloat16).float()(x.float())
    assert_as_near(model(x), exact, *plain)
    assert_as_near(trained(x), exact, *plain)


def test_a_trained_scale_is_in_the_state_of_the_whole_model():
    trained, _, whole = published(alpha=4.0, train_sigma=True)
    model = base()
    import_published(model, whole, alpha=4.0, train_sigma=True)
    assert_same(model, trained)
    assert model[0].sigma.item() == pytest.approx(0.8 * 4.0 / 8)
    assert model[0].sigma.requires_grad


def test_a_rank_above_the_smaller_side_counts_in_the_scale():
    """The published default of 768 on a smaller layer keeps all of its terms, and divides by 768 all the same."""
    trained, few, _ = published(rank=40, alpha=16.0)
    model = base()
    import_published(model, few, alpha=16.0, rank=40)
    assert [layer.rank for layer in (model[0], model[2])] == [16, 16]
    assert_same(model, trained)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".safetensors"])
def test_files(tmp_path, suffix):
    trained, few, _ = published()
    path = tmp_path / f"loldu_state{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(few, path)
    model = base()
    import_published(model, path)
    assert_same(model, trained)


def test_what_was_imported_is_saved_with_its_pivots(tmp_path):
    trained, few, _ = published()
    model = base()
    import_published(model, few)
    save_adapter(model, tmp_path)
    reloaded = base()
    load_adapter(reloaded, tmp_path)
    assert_same(reloaded, trained)


def refused(state, message, model=None, error=AdapterError, **options):
    model = base() if model is None else model
    before = [type(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        import_published(model, state, **options)
    assert [type(module) for module in model.modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())


Z = "0.parametrizations.weight.0.vector_z"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": torch.zeros(3)}, "the state holds no vector_z among 1 tensors"),
        ({Z: torch.ones(17)}, "layer '0': vector_z has 17 entries; accepted: 1 to 16"),
        ({Z: torch.ones(2, 2)}, r"layer '0': vector_z is \(2, 2\)"),
        ({Z: torch.tensor([math.nan])}, "layer '0': vector_z is .* floating and finite"),
        ({Z: [1.0]}, "the state is a dict; accepted: a mapping of names to tensors"),
        ({Z.replace("0.p", "5.p", 1): torch.ones(3)}, "layer '5': the model .* has no such module"),
        ({Z.replace("0.p", "1.p", 1): torch.ones(3)}, "layer '1': the layer is a Tanh"),
        ({Z: torch.ones(3), Z.replace("t.0", "t.1"): torch.ones(3)}, "layer '0' has parametrization 1; accepted"),
    ],
)
def test_states_that_fit_nothing(state, message):
    refused(state, message)


def test_what_the_numbers_do_not_determine():
    _, few, whole = published(init="normal")
    refused(few, "layer '0': the start of z was drawn at random", init="normal")
    whole["0.parametrizations.weight.original"] = torch.zeros(2, 2)
    refused(whole, r"layer '0': the residual has shape \(2, 2\)", init="normal")
    refused(few, "init is 'other'", init="other", error=ValueError)
    refused(few, "alpha is 0", alpha=0, error=ValueError)
    refused(few, "rank is 0; accepted: an integer from 1 on", rank=0, error=ValueError)
    refused(few, "train_sigma is 'no'; accepted: True or False", train_sigma="no", error=TypeError)
    with pytest.raises(TypeError, match="model is a dict; accepted: a torch.nn.Module"):
        import_published(few, base())
    model = base()
    with torch.no_grad():
        model[0].weight[:, 0] = 0
    refused(few, "layer '0': its weight has a pivot that is zero", model)
    refused({Z: torch.ones(3)}, "layer '0' is a Conv2d", nn.Sequential(nn.Conv2d(3, 4, 2)))


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_files_that_are_no_states(tmp_path, capsys):
    torch.save({Z: Evil()}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "evil.pt: not a state dict")
    assert capsys.readouterr().out == ""
    (tmp_path / "junk.pt").write_bytes(b"junk")
    refused(tmp_path / "junk.pt", "junk.pt: not a state dict")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    refused(tmp_path / "junk.safetensors", "junk.safetensors: not a state dict")
    refused(tmp_path / "none.pt", "none.pt: No such file or directory; accepted: a state dict")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "list.pt: the state is a list")
