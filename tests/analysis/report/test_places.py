"""Layer and module type from names: the rule in its docstring, on names of real models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_ldu.analysis.report.places import ModulePlace, module_places


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("encoder.layer.3.attention.self.query.weight", "attention.self.query", 3),
        ("model.layers.17.mlp.down_proj.weight", "mlp.down_proj", 17),
        ("h.0.attn.c_attn.weight[q]", "attn.c_attn[q]", 0),
        ("model.layers.3.mlp.experts.7.w1.weight", "mlp.experts.*.w1", 3),
        ("model.layers.3.mlp.experts.gate_up_proj[12]", "mlp.experts.gate_up_proj[*]", 3),
        ("model.layers.3.mlp.experts.gate_up_proj[12][gate]", "mlp.experts.gate_up_proj[*][gate]", 3),
        ("blk.2.attn_q.weight", "attn_q", 2),
        ("layers_4/attention/query/kernel", "attention.query", 4),
        ("layers/dense_1/kernel", "layers.dense", 1),
        ("0.weight", "0.weight", 0),
        ("embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight", None),
        ("lm_head.weight", "lm_head.weight", None),
        ("blob.123456789.weight", "blob.123456789.weight", None),
        ("", "", None),
    ],
)
def test_one_name(name, module, layer):
    assert module_places([name]) == {name: ModulePlace(module, layer)}


def test_what_is_counted_in_two_places_keeps_what_is_before_the_number():
    found = module_places([f"{side}.block.1.layer.0.SelfAttention.q.weight" for side in ("encoder", "decoder")])
    assert [place.module for place in found.values()] == [
        "encoder.block.layer.*.SelfAttention.q",
        "decoder.block.layer.*.SelfAttention.q",
    ]


@given(st.lists(st.text(alphabet="ab.01/_[]é\n", max_size=12)))
def test_every_name_has_a_place(names):
    found = module_places(names)
    assert set(found) == set(names)
    for name, place in found.items():
        assert place.layer is None or place.layer >= 0
        assert place.module or not name
