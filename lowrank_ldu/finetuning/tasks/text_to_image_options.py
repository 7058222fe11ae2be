"""List the options of tasks that make images of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "float16", "bfloat16"]
LEAST = {
    "resolution": 1,
    "num_vectors": 1,
    "validation_images": 0,
    "validation_draws": 1,
    "sample_steps": 1,
    "images_per_prompt": 0,
    "inference_steps": 1,
}
NOT_NEGATIVE = ("prior_loss_weight", "guidance_scale")


@dataclass(frozen=True)
class TextToImageOptions:
    """Hold the options of these tasks, and their defaults.

    Attributes
    ----------
    resolution : int
        Pixels of the square that is cut from the middle of each image.
    instance_prompt : str, optional
        Of images that have no text of their own, such as "a photo of sks dog".
    placeholder_token, initializer_token : str, optional
        Of task "token": the new token that prompts have, and a known one with whose embedding it starts.
    num_vectors : int
        That the new token stands for.
    validation_images : int
        Images that are held out for the validation loss, drawn at random and the same for every seed. With 0 the
        training images validate, too.
    validation_draws : int
        Fixed draws of noise and timestep for each of them.
    with_prior_preservation : bool
        Whether images of the class are trained beside those of the concept.
    class_data, class_prompt : str, optional
        Those images, as the data are given, and their prompt.
    prior_loss_weight : float
        Of their loss.
    vae : str, optional
        An autoencoder instead of the model's own.
    base_dtype : str
        Of the frozen numbers.
    validation_prompts : list of str, optional
        Of images that are generated; the instance prompt if not given.
    sample_steps : int, optional
        Steps between two times in training when one image of each prompt is generated.
    images_per_prompt : int
        Images of each prompt that the finished model generates, and that are scored.
    inference_steps : int
    guidance_scale : float
    dino_model, clip_model : str
        By which those are scored; empty for none.
    """

    resolution: int = 512
    instance_prompt: str | None = None
    placeholder_token: str | None = None
    initializer_token: str | None = None
    num_vectors: int = 1
    validation_images: int = 0
    validation_draws: int = 8
    with_prior_preservation: bool = False
    class_data: str | None = None
    class_prompt: str | None = None
    prior_loss_weight: float = 1.0
    vae: str | None = None
    base_dtype: Dtype = "float32"
    validation_prompts: list[str] | None = None
    sample_steps: int | None = None
    images_per_prompt: int = 4
    inference_steps: int = 50
    guidance_scale: float = 7.5
    dino_model: str = "facebook/dino-vits16"
    clip_model: str = "openai/clip-vit-base-patch32"
