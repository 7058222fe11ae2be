import pytest
from torch import nn

from lowrank_ldu.finetuning.digits.network import VisionTransformerSettings, build_vision_transformer


@pytest.fixture
def small() -> VisionTransformerSettings:
    return VisionTransformerSettings(width=16, layers=2, heads=2, feed_forward=32)


@pytest.fixture
def network(small) -> nn.Module:
    return build_vision_transformer(small, seed=0)
