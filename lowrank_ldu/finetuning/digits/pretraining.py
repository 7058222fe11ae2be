"""Pre-train the small vision transformer on upright digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lowrank_ldu.finetuning.digits.determinism import single_threaded
from lowrank_ldu.finetuning.digits.network import VisionTransformerSettings, build_vision_transformer
from lowrank_ldu.finetuning.digits.prepared import PreparedModel
from lowrank_ldu.finetuning.digits.training import StepCallback, TrainingResult, TrainingSettings, train

if TYPE_CHECKING:
    from torch import nn

    from lowrank_ldu.finetuning.digits.data import DigitsSplit

PRETRAINING: Final = TrainingSettings(epochs=40)
LEARNING_RATE: Final = 1e-3


@single_threaded()
def pretrain(
    split: DigitsSplit,
    *,
    network: VisionTransformerSettings | None = None,
    settings: TrainingSettings = PRETRAINING,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    on_step: StepCallback | None = None,
) -> tuple[nn.Module, TrainingResult]:
    """Train every weight of a new network.

    The same call gives the same weights on the same machine with the same versions: it runs on one thread.

    Parameters
    ----------
    split : DigitsSplit
        Only ``pretraining`` is trained on, and ``upright_test`` evaluated.
    network : VisionTransformerSettings, optional
        Shape of the network.
    settings : TrainingSettings
        Budget.
    learning_rate : float
        Peak learning rate.
    seed : int
        Seed of the weights and of the batches' order.
    on_step : callable, optional
        Told of each step.

    Returns
    -------
    network : torch.nn.Module
    result : TrainingResult
        Accuracies on the upright test images, and time.
    """
    model = build_vision_transformer(network, seed=seed)
    model.requires_grad_(True)
    result = train(
        PreparedModel(model),
        split.pretraining,
        split.upright_test,
        learning_rate=learning_rate,
        seed=seed,
        settings=settings,
        on_step=on_step,
    )
    return model, result
