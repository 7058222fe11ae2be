"""Scores of images by tiny models, on images whose scores are known."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_diffusion import SIZE, save_clip, save_vit
from tiny_text_models import offline as offline_

from lowrank_ldu.finetuning.tasks.image_scores import ImageScores
from lowrank_ldu.finetuning.tasks.prompted_images import PromptedImage

CPU = torch.device("cpu")
offline = pytest.fixture(scope="module", autouse=True)(offline_)


def images(number, seed):
    drawn = np.random.default_rng(seed)
    arrays = drawn.integers(0, 256, (number, SIZE, SIZE, 3), dtype=np.uint8)
    return [PromptedImage(Image.fromarray(each), f"a photo of {place}") for place, each in enumerate(arrays)]


def mean_cosine(first, second):
    pairs = [torch.nn.functional.cosine_similarity(a, b, dim=0) for a in first for b in second]
    return float(torch.stack(pairs).mean())


def test_images_are_as_near_to_themselves_as_can_be(tmp_path):
    dino, clip = (
        ImageScores("dino", str(save_vit(tmp_path / "vit"))),
        ImageScores("clip", str(save_clip(tmp_path / "clip"))),
    )
    (one,) = images(1, 0)
    # More than one batch of the same image.
    assert dino([one] * 20, [one], CPU)["dino"] == pytest.approx(1, abs=1e-6)
    assert clip([one], [one], CPU)["clip_i"] == pytest.approx(1, abs=1e-6)
    assert dino([one], images(3, 1), CPU)["dino"] < 1 - 1e-4


@torch.no_grad()
def test_all_pairs_count_and_prompts_are_those_of_the_images(tmp_path):
    dino, clip = (
        ImageScores("dino", str(save_vit(tmp_path / "vit"))),
        ImageScores("clip", str(save_clip(tmp_path / "clip"))),
    )
    some, others = images(3, 0), images(2, 1)
    found = {**dino(some, others, CPU), **clip(some, others, CPU)}
    pixels = [
        torch.stack([torch.from_numpy(np.array(each.image)).permute(2, 0, 1) / 255 for each in group])
        for group in (some, others)
    ]
    tokens = [dino._model(pixel_values=(each - 0.5) / 0.5).last_hidden_state[:, 0] for each in pixels]
    assert found["dino"] == pytest.approx(mean_cosine(*tokens), abs=1e-4)

    values = clip._processor.image_processor
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (values.image_mean, values.image_std))
    model = clip._model
    vectors = [model.visual_projection(model.vision_model((each - mean) / std).pooler_output) for each in pixels]
    assert found["clip_i"] == pytest.approx(mean_cosine(*vectors), abs=1e-4)
    texts = [clip._processor.tokenizer(each.prompt, return_tensors="pt") for each in some]
    prompts = [model.text_projection(model.text_model(**each).pooler_output)[0] for each in texts]
    own = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in zip(vectors[0], prompts, strict=True)]
    assert found["clip_t"] == pytest.approx(sum(own) / 3, abs=1e-4)
