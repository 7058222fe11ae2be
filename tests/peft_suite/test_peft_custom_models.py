"""PEFT's tests of its zoo of small models: linear, Conv1D, convolution and embedding layers."""

import pytest
from fits import ROWS, save_fits
from sdist import load, module

globals().update(
    load(
        "test_custom_models",
        [
            "TestPeftCustomModel",
            "TestMultipleActiveAdapters",
            "TestMixedAdapterBatches",
            "TestRequiresGrad",
            "TestDefaultTargetModules",
            "TestPeftFsdpStateDict",
        ],
        methods=("LoraConfig", "BOFTConfig"),  # they have `bias`
        more=("TEST_CASES", ROWS),
    )
)


@pytest.fixture(scope="module", autouse=True)
def _fits(model_folder):
    save_fits(model_folder, module("test_custom_models").MockTransformerWrapper.from_pretrained("MLP"))
