"""PEFT's tests of what lies below its models: state dicts, matching of names, status, conversion to LoRA."""

from sdist import load

globals().update(
    load(
        "test_low_level_api",
        [
            "TestLowLevelFunctional",
            "TestInjectAdapterFromStateDict",
            "TestPeftStateDict",
            "TestGetBaseModelStateDict",
            "TestStateDictFsdpShapeValidation",
        ],
    )
)
globals().update(
    load(
        "test_tuners_utils",
        ["TestPeftCustomKwargs", "TestTargetedModuleNames", "TestExcludedModuleNames", "TestModelAndLayerStatus"],
    )
)
globals().update(load("test_lora_conversion", ["TestLoraConversion"], methods=["LoKrConfig"]))
globals().update(load("test_auto", ["TestPeftAutoModel"]))
