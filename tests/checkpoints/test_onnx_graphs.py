"""What an ONNX graph says of its weights: constants, convolutions, recurrent layers, graphs inside it."""

import numpy as np
import pytest

from lowrank_ldu.analysis.selection import storage_reason
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.checkpoints.weights import open_weights
from lowrank_ldu.errors import CheckpointError

onnx = pytest.importorskip("onnx")
make = onnx.helper.make_node
tensor_of = onnx.numpy_helper.from_array


def values(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def constant(name, array, **kwargs):
    return make("Constant", [], [name], value=tensor_of(array, "ignored"), **kwargs)


def saved(folder, nodes, initializers=()):
    stored = [tensor_of(array, name) for name, array in dict(initializers).items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initializer=stored)
    path = folder / "a.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def test_constants_are_weights(tmp_path):
    kernel, matrix = values(4, 3, 2, 2), values(5, 7)
    nodes = [
        constant("kernel", kernel),
        constant("matrix", matrix),
        make("Constant", [], ["number"], value_float=1.0),
        make("Conv", ["x", "kernel"], ["y"]),
        make("MatMul", ["y", "matrix"], ["z"]),
    ]
    with open_checkpoint(saved(tmp_path, nodes)) as reader:
        assert [(info.name, info.shape, info.order) for info in reader.tensors] == [
            ("kernel", (4, 3, 2, 2), (0, 1, 2, 3)),
            ("matrix", (5, 7), (1, 0)),
        ]
        np.testing.assert_array_equal(reader.load("kernel").numpy(), kernel)
        np.testing.assert_array_equal(reader.load("matrix").numpy(), matrix)


def test_convolutions_are_told_by_their_use(tmp_path):
    weights = {"a": values(4, 3, 2), "b": values(4, 3, 2), "c": values(3, 4, 2), "d": values(3, 4, 2, 1, 1)}
    nodes = [
        make("Conv", ["x", "a"], ["y"]),
        make("ConvTranspose", ["x", "c"], ["u"]),
        make("ConvTranspose", ["x", "d"], ["v"]),
        make("Add", ["y", "b"], ["z"]),
    ]
    with open_weights(saved(tmp_path, nodes, weights)) as reader:
        orders = {info.name: info.order for info in reader.tensors}
        reasons = {info.name: storage_reason(info) for info in reader.tensors}
    assert orders == {"a": (0, 1, 2), "b": (), "c": (1, 0, 2), "d": (1, 0, 2, 3, 4)}
    assert reasons == {"a": None, "c": None, "d": None, "b": "3-D: neither experts nor a convolution by its name"}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_come_direction_by_direction(tmp_path, kind):
    weights = {"W": values(2, 12, 5), "R": values(2, 12, 3), "B": values(2, 24)}
    nodes = [make(kind, ["x", "W", "R", "B"], ["y"], hidden_size=3, direction="bidirectional")]
    with open_weights(saved(tmp_path, nodes, weights)) as reader:
        assert [(info.name, info.shape, storage_reason(info)) for info in reader.tensors] == [
            ("W[0]", (12, 5), None),
            ("W[1]", (12, 5), None),
            ("R[0]", (12, 3), None),
            ("R[1]", (12, 3), None),
            ("B", (2, 24), "biases of a recurrent layer: it is no weight"),
        ]
        for name, row in (("W", 0), ("W", 1), ("R", 1)):
            np.testing.assert_array_equal(reader.load(f"{name}[{row}]").numpy(), weights[name][row])


def test_weights_beside_the_file_are_taken_apart_too(tmp_path):
    weights = {"W": values(2, 12, 5), "R": values(2, 12, 3)}
    path = saved(tmp_path, [make("LSTM", ["x", "W", "R"], ["y"], hidden_size=3)], weights)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with open_checkpoint(path) as reader:
        np.testing.assert_array_equal(reader.load("W[1]").numpy(), weights["W"][1])


def test_graphs_inside_a_graph_are_read(tmp_path):
    def branch(array):
        nodes = [constant("w", array), make("MatMul", ["x", "w"], ["y"])]
        output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph(nodes, "branch", [], [output])

    first, second = values(4, 6), values(4, 8)
    nodes = [
        make("If", ["c"], ["a"], then_branch=branch(first), else_branch=branch(second), name="rate"),
        make("If", ["c"], ["b"], then_branch=branch(second), else_branch=branch(first)),
    ]
    with open_checkpoint(saved(tmp_path, nodes)) as reader:
        found = {info.name: (info.shape, info.order) for info in reader.tensors}
        assert found == {
            "rate.then_branch/w": ((4, 6), (1, 0)),
            "rate.else_branch/w": ((4, 8), (1, 0)),
            "If_1.then_branch/w": ((4, 8), (1, 0)),
            "If_1.else_branch/w": ((4, 6), (1, 0)),
        }
        np.testing.assert_array_equal(reader.load("rate.else_branch/w").numpy(), second)


def test_weights_are_told_by_uses_of_copies_and_inside_other_graphs(tmp_path):
    names = ("copied", "cast", "outside", "fused", "turned", "shadowed")
    weights = {name: values(4, 6) for name in names}
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    inner = [
        make("MatMul", ["x", "outside"], ["z"]),
        constant("shadowed", values(4, 8)),
        make("MatMul", ["z", "shadowed"], ["y"]),
    ]
    branch = onnx.helper.make_graph(inner, "branch", [], [output])
    nodes = [
        make("Identity", ["copied"], ["copied_1"]),
        make("Cast", ["cast"], ["cast_1"], to=1),
        make("Identity", ["cast_1"], ["cast_2"]),
        make("MatMul", ["x", "copied_1"], ["a"]),
        make("MatMul", ["x", "cast_2"], ["b"]),
        make("FusedMatMul", ["x", "fused"], ["c"], domain="com.microsoft"),
        make("FusedMatMul", ["x", "turned"], ["d"], domain="com.microsoft", transB=1),
        make("If", ["e"], ["f"], then_branch=branch, else_branch=branch, name="same"),
        make("If", ["e"], ["g"], then_branch=branch, else_branch=branch, name="same"),
    ]
    with open_weights(saved(tmp_path, nodes, weights)) as reader:
        orders = {info.name: info.order for info in reader.tensors}
    turned = dict.fromkeys(("copied", "cast", "outside", "fused"), (1, 0)) | dict.fromkeys(("turned", "shadowed"), ())
    inside = [f"If_{place}.{side}_branch/shadowed" for place in (7, 8) for side in ("then", "else")]
    assert orders == turned | dict.fromkeys(inside, (1, 0))


def test_a_name_of_two_tensors_is_refused(tmp_path):
    path = saved(tmp_path, [constant("w", values(2, 3))], {"w": values(2, 3)})
    with pytest.raises(CheckpointError, match="two initializers or constants are called 'w'"):
        open_checkpoint(path)
