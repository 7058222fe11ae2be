"""PEFT's tests of its zoo of small models: linear, Conv1D, convolution and embedding layers."""

from sdist import load

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
    )
)
