"""Score generated images by models that embed images and texts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning.extra import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lowrank_ldu.finetuning.tasks.prompted_images import PromptedImage

_BATCH = 16


# The option that names the model, and transformers' classes of the model and its processor.
_KINDS = {
    "dino": ("dino_model", "AutoModel", "AutoImageProcessor"),
    "clip": ("clip_model", "CLIPModel", "CLIPProcessor"),
}


class ImageScores:
    """Compare generated images with references, and with prompts, by their embeddings.

    Parameters
    ----------
    kind : {"dino", "clip"}
        Of DINO the last state of the first token is an image's embedding. CLIP embeds texts, too.
    model : str
        A vision transformer, such as "facebook/dino-vits16", or a CLIP, such as "openai/clip-vit-base-patch32".

    Raises
    ------
    OptionError
        Its processor cannot be loaded: there is no such model.
    """

    def __init__(self, kind: Literal["dino", "clip"], model: str) -> None:
        self._kind = kind
        self._name = model
        self._processor = _load(kind, model, of_model=False)
        self._model: Any = None

    def load(self) -> None:
        """Load the model, if it is not loaded yet.

        Raises
        ------
        OptionError
            It cannot be loaded.
        """
        if self._model is None:
            self._model = _load(self._kind, self._name, of_model=True).eval()

    def __call__(
        self, images: Sequence[PromptedImage], references: Sequence[PromptedImage], device: torch.device
    ) -> dict[str, float]:
        """Return the mean cosines of images with references, and with prompts.

        Parameters
        ----------
        images, references : sequence of PromptedImage
        device : torch.device

        Returns
        -------
        dict
            "dino" or "clip_i" of all pairs of an image and a reference, as section 4 of arXiv 2208.12242 has it. Of
            CLIP also "clip_t", of each image and the prompt that it was generated from.
        """
        self.load()
        self._model.to(device)
        own, others = (_unit(partial(self._of_images, device), some) for some in (images, references))
        if self._kind == "dino":
            return {"dino": _mean_cosine(own, others)}
        prompts = _unit(partial(self._of_prompts, device), images)
        return {"clip_i": _mean_cosine(own, others), "clip_t": float((own * prompts).sum(1).mean())}

    def _of_images(self, device: torch.device, some: Sequence[PromptedImage]) -> Tensor:
        inputs = self._processor(images=[each.image for each in some], return_tensors="pt").to(device)
        if self._kind == "clip":
            return _features(self._model.get_image_features(**inputs))
        states: Tensor = self._model(**inputs).last_hidden_state
        return states[:, 0]

    def _of_prompts(self, device: torch.device, some: Sequence[PromptedImage]) -> Tensor:
        texts = [each.prompt for each in some]
        inputs = self._processor(text=texts, return_tensors="pt", padding=True, truncation=True).to(device)
        return _features(self._model.get_text_features(**inputs))


def _load(kind: str, model: str, *, of_model: bool) -> Any:
    name, *classes = _KINDS[kind]
    try:
        return getattr(require("transformers"), classes[0 if of_model else 1]).from_pretrained(model)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(
            f"{name} is {model!r}, which transformers cannot load: {reason}; accepted: another one, or an empty string "
            "to leave its scores out"
        ) from error


def _features(found: Any) -> Tensor:
    """Return the features out of what a version of transformers gives."""
    features: Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
    return features


@torch.no_grad()
def _unit(embed: Callable[[Sequence[PromptedImage]], Tensor], images: Sequence[PromptedImage]) -> Tensor:
    """Return embeddings of length 1, a row for each image."""
    parts = [embed(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return torch.nn.functional.normalize(torch.cat(parts).double(), dim=1)


def _mean_cosine(first: Tensor, second: Tensor) -> float:
    return float((first @ second.T).mean())
