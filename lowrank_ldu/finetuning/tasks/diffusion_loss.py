"""Compute the loss by which a diffusion model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.finetuning.tasks.prompted_images import EXTRA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn


@dataclass(frozen=True)
class DiffusionLoss:
    """Compute the mean squared error of the UNet's prediction.

    Noise and timesteps are drawn from torch's global CPU generator while the model is trained, and from each image's
    own seed while it is evaluated, so that a loss is comparable between steps. Where images of a class are among the
    batch, their losses are added with their weight, as DreamBooth's prior preservation does (arXiv 2208.12242).

    Attributes
    ----------
    schedule : diffusers.DDPMScheduler
        Of the noise.
    scaling : float
        Factor of the autoencoder's latents.
    dtype : torch.dtype
        Of the UNet's frozen numbers.
    unet : nn.Module, optional
        Where the text encoder is the model that is trained; batches have tokens instead of embeddings then. Moved to
        their device when it is needed.
    """

    schedule: Any
    scaling: float
    dtype: torch.dtype
    unet: nn.Module | None = None

    @classmethod
    def of(cls, pipeline: Any, *, of_text_encoder: bool = False) -> DiffusionLoss:
        """Return the loss of a pipeline's UNet, or of its text encoder."""
        schedule = require("diffusers", EXTRA).DDPMScheduler.from_config(pipeline.scheduler.config)
        unet = pipeline.unet.eval()
        return cls(schedule, pipeline.vae.config.scaling_factor, unet.dtype, unet if of_text_encoder else None)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch of `collate`, a scalar."""
        mean = batch["mean"]
        if model.training:
            # Generators of several processes are in the same state: each draws for all, and takes its own.
            state = require("accelerate").PartialState()
            drawn = [self._draw(mean.shape, None) for _ in range(state.num_processes)][state.process_index]
        else:
            each = [self._draw((1, *mean.shape[1:]), seed) for seed in batch["seed"].tolist()]
            drawn = [torch.cat(parts) for parts in zip(*each, strict=True)]
        sampled, noise, timesteps = (values.to(mean.device) for values in drawn)
        latents = (mean + batch["deviation"] * sampled) * self.scaling
        noisy = self.schedule.add_noise(latents, noise, timesteps).to(self.dtype)
        embeddings, unet = batch["embeddings"], model
        if self.unet is not None:
            embeddings, unet = model(embeddings)[0], self.unet.to(mean.device)
        (predicted,) = unet(noisy, timesteps, encoder_hidden_states=embeddings.to(self.dtype), return_dict=False)
        velocity = self.schedule.config.prediction_type == "v_prediction"
        target = self.schedule.get_velocity(latents, noise, timesteps) if velocity else noise
        errors = (predicted.float() - target).square().flatten(1).mean(1)
        loss: Tensor = (batch["weight"] * errors).sum()
        return loss

    def _draw(self, shape: Sequence[int], seed: int | None) -> list[Tensor]:
        """Draw the latents' own noise, the noise that is added, and timesteps.

        On the CPU, so that every device gets the same.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        first, second = (torch.randn(shape, generator=generator) for _ in range(2))
        steps = self.schedule.config.num_train_timesteps
        return [first, second, torch.randint(steps, shape[:1], generator=generator)]
