"""Hypothesis profiles, and each test on each array library."""

import os

import hypothesis
import pytest
import torch
from libraries import LIBRARIES

# A fixed seed: what CI proves is the same on every run. "explore" looks further, by hand.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(params=LIBRARIES, ids=repr)
def library(request):
    return request.param


@pytest.fixture(autouse=True)
def _fixed_torch_seed():
    torch.manual_seed(0)
