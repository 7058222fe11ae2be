"""Whether a weight is the base of training: one policy for all who ask."""

import math

import pytest

from lowrank_ldu.nn.base_identity import QUANTIZED, ROUNDED, UNRELATED, Deviation, outcome


@pytest.mark.parametrize(
    ("policy", "tolerated", "expected"),
    [
        ("error", None, ["ignore", "error", "error", "error", "error"]),
        ("error", QUANTIZED, ["ignore", "warn", "warn", "error", "error"]),
        ("warn", None, ["ignore", "warn", "warn", "warn", "warn"]),
        ("warn", QUANTIZED, ["ignore", "warn", "warn", "warn", "warn"]),
        ("ignore", None, ["ignore"] * 5),
        ("ignore", QUANTIZED, ["ignore"] * 5),
    ],
)
def test_a_policy_says_what_is_done(policy, tolerated, expected):
    sizes = [0.0, QUANTIZED, 0.21, math.nan]
    deviations = [None, *(Deviation("query", base=size) for size in sizes)]
    assert [outcome(deviation, policy, tolerated=tolerated) for deviation in deviations] == expected


def test_an_update_that_deviates_counts_as_much_as_a_base():
    assert outcome(Deviation("query", update=0.5), "error", tolerated=QUANTIZED) == "error"
    assert outcome(Deviation("query", base=0.1, update=0.1), "error", tolerated=QUANTIZED) == "warn"


def test_the_limits_are_in_order():
    assert 0 < ROUNDED < QUANTIZED < UNRELATED < 1


def test_a_deviation_names_the_layer_and_what_is_off():
    assert str(Deviation("query", base=0.123, dtypes=("float16", "float32"), update=2.0)) == (
        "layer 'query': the weight is not the one that the adapter was trained on: it differs, by 12 % where it was "
        "sampled, and is float16 for float32; the update comes out about 200 % off"
    )
    assert "it differs, but not where it was sampled" in str(Deviation("query", base=0.0))
