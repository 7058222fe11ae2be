"""Where PEFT's tests find their models, what of theirs is ours, and an account of what is not run."""

import re
from pathlib import Path

import pytest
from hub_models import save_models
from left_out import reason_to_leave_out
from loldu_for_lora import Loldu
from sdist import module

from lowrank_ldu.peft import LolduModel

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


@pytest.fixture(autouse=True)
def _local_models(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# Names in PEFT's common tests by which they tell which methods can do what, and the test that looks at each.
_CAN = {
    "_test_mixed_adapter_batches": {"RoadConfig"},
    "_test_generate_with_mixed_adapter_batches_and_beam_search": {"LoraConfig"},
    "_test_adding_multiple_adapters_with_bias_raises": {"LoraConfig"},
    "_test_weighted_combination_of_adapters": {"IA3Config"},
    # And the tolerance for grouped convolutions.
    "_test_safe_merge": {"LoHaConfig"},
}


@pytest.fixture(autouse=True)
def _can_what_lora_can(monkeypatch):
    """Let PEFT's common tests treat LoLDU as a method that can do what they know by name that LoRA and others can."""
    common = module("testing_common")
    tester = common.PeftCommonTester
    monkeypatch.setattr(common, "_skip_if_conv1d_not_supported", lambda *_: None)
    for name, known in _CAN.items():
        monkeypatch.setattr(tester, name, _with_names(getattr(tester, name), common, known))


# They load adapters on a base with other random weights, which LoLDU refuses unless told otherwise.
_OTHER_BASES = (
    "test_loading_model_",
    "test_load_resized_embedding_",
    "test_load_does_not_overwrite_similarly_named_sibling",
    "test_ignore_mismatched_sizes_",
    "test_set_peft_model_state_dict_preserves_input",
)


@pytest.fixture(autouse=True)
def _on_other_bases(request, monkeypatch):
    if request.node.name.startswith(_OTHER_BASES):
        monkeypatch.setattr(Loldu, "on_other_bases", "ignore")


@pytest.fixture(autouse=True)
def _exact_sums(monkeypatch):
    """Take what is exact for LoRA as what is exact here; `density` is for what is neither."""
    weighted = LolduModel.add_weighted_adapter

    def run(self, *args, combination_type="linear", density=None, **options):
        del density
        combination_type = {"cat": "linear", "svd": "linear"}.get(combination_type, combination_type)
        return weighted(self, *args, combination_type=combination_type, **options)

    monkeypatch.setattr(LolduModel, "add_weighted_adapter", run)


@pytest.fixture(autouse=True)
def _parameter_names(request, monkeypatch):
    """Expect LoLDU's parameters where LoRA's are expected to be trained."""
    check = getattr(request.cls, "check_requires_grad", None)
    if check is not None:

        def run(self, model, *names):
            return check(self, model, *(_as_loldu_parameter(name) for name in names))

        monkeypatch.setattr(request.cls, "check_requires_grad", run)


def _as_loldu_parameter(name):
    for lora, loldu in (("A", "offset"), ("B", "sigma")):
        name = re.sub(rf"\.lora_(?:embedding_)?{lora}\.(\w+)(\.weight)?$", rf".loldu_adapter.\1.{loldu}", name)
    return name


def _with_names(test, common, names):
    def run(*args, **options):
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(common, name, Loldu)
            return test(*args, **options)

    return run


def pytest_configure(config):
    # PEFT's own marks; one is a misspelling of skipif.
    for mark in ("skipf", "single_gpu_tests", "multi_gpu_tests", "bitsandbytes", "regression"):
        config.addinivalue_line("markers", f"{mark}: PEFT's")


def pytest_collection_modifyitems(items):
    for item in items:
        if _HERE in item.path.parents:
            # PEFT's tests warn on purpose, and so do transformers and torch when they are used as PEFT uses them.
            item.add_marker(pytest.mark.filterwarnings("default"))
            reason = reason_to_leave_out(item.nodeid)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=f"left out: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and _HERE in item.path.parents and reason_to_leave_out(item.nodeid) is None:
        report.outcome = "failed"
        report.longrepr = f"skipped, and not listed in left_out.py: {report.longrepr}"
    return report
