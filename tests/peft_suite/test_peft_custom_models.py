"""PEFT's tests of its zoo of small models: linear, Conv1D, convolution and embedding layers."""

import pytest
from fits import ROWS, save_fits
from loldu_for_lora import Loldu
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


@pytest.fixture(autouse=True)
def _rate_of_small_gradients(request, monkeypatch):
    """Have the rate that PEFT takes for DoRA in this model of a few numbers behind a ReLU.

    A core starts at zero, and the gradient of its scale with it: what the scale moves by is of second order.
    """
    if request.node.name.startswith("test_only_params_are_updated[Embedding + transformers Conv1D dense"):
        monkeypatch.setattr(module("test_custom_models"), "HiraConfig", Loldu)  # one of those with a rate of 100
