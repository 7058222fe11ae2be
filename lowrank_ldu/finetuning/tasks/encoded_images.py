"""Encode images and prompts once, by the frozen parts of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lowrank_ldu.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowrank_ldu.finetuning.tasks.prompted_images import PromptedImage


class EncodedImage(NamedTuple):
    """Hold what the frozen parts make of an image and its prompt.

    Attributes
    ----------
    mean, deviation : Tensor, float32, shape (channels, height, width)
        Of the latents, each of which is normally distributed.
    embeddings : Tensor, float32, shape (tokens, features), or int64, shape (tokens,)
        Of the prompt; or its tokens, where their embeddings are trained.
    weight : float
        Of its loss.
    seed : int
        Of its noise and timestep where they are fixed.
    """

    mean: Tensor
    deviation: Tensor
    embeddings: Tensor
    weight: float = 1.0
    seed: int = 0


class Encoder:
    """Encode images and prompts by a pipeline's frozen parts.

    Parameters
    ----------
    pipeline : diffusers.StableDiffusionPipeline
    resolution : int
        Pixels of the square that is cut from the middle of an image.
    device : torch.device
        Where it is done; the parts are on the CPU again afterwards.
    tokens : bool
        Whether prompts are left as tokens.

    Raises
    ------
    OptionError
        The resolution is no multiple of what the autoencoder makes one latent of.
    """

    def __init__(self, pipeline: Any, resolution: int, device: torch.device, *, tokens: bool = False) -> None:
        factor = pipeline.vae_scale_factor
        if resolution % factor:
            raise OptionError(f"resolution is {resolution}; accepted by the model: multiples of {factor}")
        self._pipeline = pipeline
        self._resolution = resolution
        self._device = device
        self._tokens = tokens

    @torch.no_grad()
    def encode(self, images: Sequence[PromptedImage]) -> list[EncodedImage]:
        """Return what the frozen parts make of images and prompts."""
        pipeline = self._pipeline
        for part in (pipeline.vae, pipeline.text_encoder):
            part.to(self._device).eval()
        try:
            embeddings = {prompt: self._embeddings(prompt) for prompt in dict.fromkeys(each.prompt for each in images)}
            return [EncodedImage(*self._latents(image), embeddings[prompt]) for image, prompt in images]
        finally:
            for part in (pipeline.vae, pipeline.text_encoder):
                part.to("cpu")

    def _embeddings(self, prompt: str) -> Tensor:
        pipeline = self._pipeline
        if self._tokens:
            words = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
            number, most = len(pipeline.tokenizer(words).input_ids), pipeline.tokenizer.model_max_length
            if number > most:
                raise OptionError(f"the prompt {prompt!r} is {number} tokens; accepted by the model: at most {most}")
            return torch.tensor(pipeline.tokenizer(words, padding="max_length").input_ids)
        found: Tensor = pipeline.encode_prompt(prompt, self._device, 1, do_classifier_free_guidance=False)[0]
        return found[0].float().cpu()

    def _latents(self, image: Any) -> tuple[Tensor, Tensor]:
        size = {"height": self._resolution, "width": self._resolution}
        pixels = self._pipeline.image_processor.preprocess(image, resize_mode="crop", **size)
        found = self._pipeline.vae.encode(pixels.to(self._device)).latent_dist
        return found.mean[0].float().cpu(), found.std[0].float().cpu()


class RepeatedDraws(torch.utils.data.Dataset[EncodedImage]):
    """Give each image several times, each time with its own seed.

    Parameters
    ----------
    images : sequence of EncodedImage
    draws : int
        Times that each image comes.
    """

    def __init__(self, images: Sequence[EncodedImage], draws: int = 1) -> None:
        self._images = images
        self._draws = draws

    def __len__(self) -> int:
        return len(self._images) * self._draws

    def __getitem__(self, place: int) -> EncodedImage:
        return self._images[place % len(self._images)]._replace(seed=place)


class PairsOfClasses(torch.utils.data.Dataset[tuple[EncodedImage, EncodedImage]]):
    """Give images of a concept, each with one of its class.

    The shorter list is begun anew until the longer one ends.

    Parameters
    ----------
    images, others : sequence of EncodedImage
        Of the concept, and of its class.
    weight : float
        Of the loss of the class.
    """

    def __init__(self, images: Sequence[EncodedImage], others: Sequence[EncodedImage], weight: float) -> None:
        self._images = images
        self._others = others
        self._weight = weight

    def __len__(self) -> int:
        return max(len(self._images), len(self._others))

    def __getitem__(self, place: int) -> tuple[EncodedImage, EncodedImage]:
        other = self._others[place % len(self._others)]
        return (
            self._images[place % len(self._images)]._replace(seed=place),
            other._replace(weight=self._weight, seed=len(self) + place),
        )


def collate(rows: Sequence[Any]) -> dict[str, Tensor]:
    """Stack images, and those of pairs, into a batch.

    Parameters
    ----------
    rows : sequence of EncodedImage, or of pairs of them

    Returns
    -------
    dict
        "mean", "deviation", "embeddings", "weight" and "seed", an entry for each image. Weights are divided by the
        number of rows: the loss is a sum with them.
    """
    images = [image for row in rows for image in ((row,) if isinstance(row, EncodedImage) else row)]
    batch = {name: torch.stack([getattr(each, name) for each in images]) for name in EncodedImage._fields[:3]}
    weights = torch.tensor([each.weight for each in images], dtype=torch.float32) / len(rows)
    return {**batch, "weight": weights, "seed": torch.tensor([each.seed for each in images])}
