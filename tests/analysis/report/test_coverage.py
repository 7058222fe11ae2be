"""Whether an analysis covers all matrices, and what an optimizer keeps."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import Analysis, analyze, headlines
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.errors import NothingToAnalyzeError

PAIR = {"A": (2, 5), "B": (6, 2)}
OPTIONS = {"ranks": (2,), "pivoting": "partial", "threads": 1}
NO_MATRICES = {
    "bias": torch.ones(4),
    "number": torch.tensor(1.0),
    "position_ids": torch.arange(12).reshape(3, 4),
    "mask": torch.ones(5, 5, dtype=torch.bool),
    "row": torch.ones(1, 9),
    "empty": torch.ones(0, 4),
}


def said(state, **options):
    return headlines(analyze(state, **OPTIONS, **options))[2]


def test_tensors_that_are_no_matrices_leave_nothing_out():
    assert said({"a.weight": weight(6, 5), **NO_MATRICES}) == "COMPLETE: all matrices are analyzed, 1 of 1."


def test_sides_are_those_of_the_matrix(tmp_path):
    onnx = pytest.importorskip("onnx")
    weights = {"w": weight(6, 5).numpy(), "up": torch.ones(6, 1, 2, 2).numpy()}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
        onnx.helper.make_node("ConvTranspose", ["y", "up"], ["z"]),  # (in, out, height, width)
    ]
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initializer=stored)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    assert said(tmp_path / "a.onnx") == "COMPLETE: all matrices are analyzed, 1 of 1."


def test_what_is_left_out_is_counted_by_reason():
    state = {
        "a.weight": weight(6, 5),
        "b.weight": weight(6, 5),
        "head": weight(6, 5),
        "packed": torch.ones(6, 5, dtype=torch.int32),
        "stack": torch.ones(3, 4, 5),
        **NO_MATRICES,
    }
    assert said(state, exclude="head|b") == (
        "PARTIAL: 1 of 5 matrices are analyzed; left out: 2 x its name is excluded; 1 x int32: integers are not "
        "factored; 1 x 3-D: neither experts nor a convolution by its name."
    )
    bad = weight(6, 5)
    bad[0, 0] = torch.nan
    assert said({"a": weight(6, 5), "bad": bad}).startswith("PARTIAL: 1 of 2 matrices are analyzed; left out: 1 x it")


def test_what_is_there_twice_or_added_leaves_nothing_out(tmp_path):
    shared = weight(6, 5)
    assert said({"a": shared, "tied": shared}) == "COMPLETE: all matrices are analyzed, 1 of 1."
    # In the format of before torch 1.6 values are read at once.
    for number, zipped in enumerate((True, False)):
        states = {"a": shared, "tied": shared, "part": shared[:3]}
        torch.save(states, tmp_path / f"{number}.pt", _use_new_zipfile_serialization=zipped)
        found = {result.name: result.reason for result in analyze(tmp_path / f"{number}.pt", ranks=2).results}
        assert found == {"a": None, "tied": "the same tensor as 'a'", "part": None}
    onnx = pytest.importorskip("onnx")
    weights = {"W": weight(12, 5), "R": weight(12, 3), "B": weight(2, 24)}
    node = onnx.helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], hidden_size=3)
    weights = {name: tensor.expand(2, *tensor.shape) if name in "WR" else tensor for name, tensor in weights.items()}
    stored = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in weights.items()]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], initializer=stored)), tmp_path / "a.onnx"
    )
    assert said(tmp_path / "a.onnx") == "COMPLETE: all matrices are analyzed, 4 of 4."


def test_what_cannot_be_loaded_may_be_more(tmp_path):
    sparse = {"a": weight(6, 5), "sparse": torch.eye(4).to_sparse(), "epoch": 3}
    torch.save(sparse, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", a=weight(6, 5).numpy(), objects=np.array([[{}]], dtype=object), words=np.array(["a"]))
    for source, what in (
        (tmp_path / "a.pt", "torch.float32 tensor, torch.sparse_coo, on meta"),
        (sparse, "torch.float32 tensor, torch.sparse_coo, on cpu"),
        (tmp_path / "a.npz", "object array"),
    ):
        assert said(source) == f"PARTIAL: 1 of 1 matrices are analyzed; not read, and may hold more: 1 x {what}."


def test_what_an_adapter_has_beside_updates_may_be_more(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    factors = {f"{name}.lora_{side}.weight": weight(*shape) for name in "wv" for side, shape in PAIR.items()}
    beside = {
        "v.lora_magnitude_vector": torch.ones(6),  # so that v's update is DoRA's
        "half.lora_A.weight": weight(2, 5),
        "ids": torch.arange(4),
    }
    save_file(factors | beside, tmp_path / "adapter_model.safetensors")
    assert said(tmp_path) == (
        "PARTIAL: 1 of 1 matrices are analyzed; not read, and may hold more: 2 x factor of a DoRA update, which needs "
        "the base weight; 1 x float32 tensor that is no factor of an update."
    )


def test_the_reason_says_what_is_not_read(tmp_path):
    state = {"a": weight(6, 5), "sparse": torch.eye(4).to_sparse(), "epoch": 3}
    found = {each.name: (each.dtype, each.reason) for each in analyze(state, **OPTIONS).skipped}
    assert found == {
        "sparse": ("", "not read, and may hold weights: torch.float32 tensor, torch.sparse_coo, on cpu"),
        "epoch": ("int", "not a plain tensor"),
    }
    factors = {f"w.lora_{side}.weight": weight(*shape) for side, shape in PAIR.items()}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "init_lora_weights": "pissa"}')
    with pytest.raises(NothingToAnalyzeError, match=r"and 1 more: not read, and may hold weights: .* is 'pissa'"):
        analyze(tmp_path, **OPTIONS)


def test_the_updates_of_an_adapter_are_said_to_be_that(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    shapes = {"a": (6, 5), "b": (9, 4), "conv": (7, 3, 2, 2)}
    factors = {}
    for seed, (name, (out, *rest)) in enumerate(shapes.items()):
        factors[f"{name}.lora_A.weight"] = weight(2, *rest, seed=seed)
        factors[f"{name}.lora_B.weight"] = weight(out, 2, *([1] * len(rest[1:])), seed=seed)
    save_file(factors, tmp_path / "adapter_model.safetensors")
    sentence = (
        "The matrices are the updates of an adapter, which itself stores {} numbers, r (m + n) of each: {} of the"
    )
    whole = analyze(tmp_path, **OPTIONS)
    assert whole.adapter_numbers == sum(tensor.numel() for tensor in factors.values()) == 86
    assert sentence.format(86, "57%") + " 150 that sizes here" in headlines(whole)[0]
    assert sentence.format(86, "57%") in repr(whole)
    part = analyze(tmp_path, select="a|b", **OPTIONS)
    assert sentence.format(48, "73%") + " 66 that sizes here" in headlines(part)[0]
    part.save(tmp_path / "report")
    assert Analysis.load(tmp_path / "report") == part
    assert analyze({"a": weight(6, 5)}, **OPTIONS).adapter_numbers is None


def test_types_that_torch_lacks_may_be_more(tmp_path):
    onnx = pytest.importorskip("onnx")
    kinds = onnx.TensorProto
    odd = [
        onnx.helper.make_tensor("float8", kinds.FLOAT8E5M2FNUZ, [2, 2], [1.0] * 4),
        onnx.helper.make_tensor("words", kinds.STRING, [2, 2], [b"a"] * 4),
        onnx.helper.make_tensor("scale", kinds.FLOAT8E5M2FNUZ, [2], [1.0] * 2),
    ]
    stored = [onnx.numpy_helper.from_array(weight(6, 5).numpy(), "w"), *odd]
    graph = onnx.helper.make_graph([], "graph", [], [], initializer=stored)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    assert said(tmp_path / "a.onnx").endswith(
        "not read, and may hold more: 1 x FLOAT8E5M2FNUZ tensor of dimensions [2, 2]."
    )


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_what_an_optimizer_keeps_is_listed_and_not_analyzed(tmp_path, optimizer):
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 6)
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    trained = optimizer(layer.parameters(), lr=0.1, **options)
    layer(torch.ones(2, 5)).sum().backward()
    trained.step()
    path = tmp_path / "checkpoint.ckpt"
    torch.save({"state_dict": layer.state_dict(), "optimizer_states": [trained.state_dict()], "epoch": 1}, path)
    analysis = analyze(path, **OPTIONS)
    assert [tensor.name for tensor, _ in analysis.matrices] == ["state_dict.weight"]
    kept = {tensor.name for tensor in analysis.skipped if tensor.reason == "kept by an optimizer: it is no weight"}
    assert kept >= {f"optimizer_states.0.state.{place}" + ending for place in (0, 1) for ending in _endings(optimizer)}
    assert headlines(analysis)[2].startswith("COMPLETE")
    for opened in (open_checkpoint(path), open_weights(path)):
        with opened as reader:
            name = min(name for name in kept if reader.info(name).shape == (6, 5))
            assert reader.load(name).shape == (6, 5)


def _endings(optimizer):
    return (".momentum_buffer",) if optimizer is torch.optim.SGD else (".exp_avg", ".exp_avg_sq")


def test_a_model_with_a_part_called_state_is_none(tmp_path):
    torch.save({"state": {"0": {"w": weight(6, 5)}}, "param_groups": weight(6, 5)}, tmp_path / "a.pt")
    assert len(analyze(tmp_path / "a.pt", **OPTIONS).matrices) == 2


@pytest.mark.parametrize("place", ["optimizer_weights/Adam/dense/kernel/m:0", "optimizer/vars/2"])
def test_what_an_optimizer_of_keras_keeps_is_not_analyzed(tmp_path, place):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/dense/vars/0"] = weight(6, 5).numpy()
        file[place] = weight(6, 5, seed=1).numpy()
    analysis = analyze(tmp_path / "a.h5", **OPTIONS)
    assert [tensor.name for tensor, _ in analysis.matrices] == ["layers/dense/vars/0"]
    assert {tensor.name: tensor.reason for tensor in analysis.skipped} == {
        place: "kept by an optimizer: it is no weight"
    }
    assert headlines(analysis)[2].startswith("COMPLETE")
