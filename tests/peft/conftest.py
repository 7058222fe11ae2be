"""PEFT and transformers as they are: without a network, and with the deprecations that are between the two."""

import os

# Before any import: nothing here is to be looked for on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(_HERE):
            # Asked for by PEFT, too; transformers renamed them, and versions that are accepted know the old names only.
            item.add_marker(pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated"))
