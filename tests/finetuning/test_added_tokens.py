"""New tokens taught to a tiny Stable Diffusion (Textual Inversion), and loaded by diffusers."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_diffusion import SETTINGS, SIZE, save_images, save_pipeline
from tiny_text_models import offline as offline_

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import Choice, load_recipe, run_recipe
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.tasks import get_kind

PROMPT = "a <toy> b"
offline = pytest.fixture(scope="module", autouse=True)(offline_)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("tokens")
    save_pipeline(found / "model")
    save_images(found / "images", 2)
    return found


def chosen(folder, method=None, **settings):
    given = {name: value for name, value in SETTINGS.items() if name != "r"}
    given |= {"instance_prompt": PROMPT, "placeholder_token": "<toy>", "initializer_token": "c"}
    given |= {"vae": str(folder / "model" / "vae"), "images_per_prompt": 1, "base_dtype": "float32", **settings}
    return Choice(model=str(folder / "model"), data=str(folder / "images"), method=method, settings=given)


def loaded(folder, recipe="textual-inversion", method=None, **settings):
    found = load_recipe(recipe)
    config = configure(found, found.tasks[0], chosen(folder, method, **settings), seed=42)
    return get_kind("text-to-image").load(config)


def pipeline_of(folder):
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model", **none)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_token_is_learned_and_loaded_by_diffusers(folder, vectors, tmp_path):
    settings = {"num_vectors": vectors, "learning_rate": 0.3, "sample_steps": 10}
    (result,) = run_recipe(load_recipe("textual-inversion"), tmp_path, chosen(folder, **settings))
    assert result.record["numbers_trained_whole"] == vectors * 16
    losses = [
        line["eval_loss"]
        for line in map(json.loads, (result.folder / "log.jsonl").read_text().splitlines())
        if "eval_loss" in line
    ]
    start = loaded(folder, num_vectors=vectors)
    rows = start.collator([start.validation[place] for place in range(len(start.validation))])
    with torch.no_grad():
        assert min(losses) < float(start.loss(start.model.eval(), rows)) - 1e-4
    learned = load_file(result.folder / "learned_embeds.safetensors")["<toy>"]
    assert learned.shape == ((16,) if vectors == 1 else (vectors, 16))
    # Nothing else has changed: diffusers' own pipeline gives the same image with the file.
    pipeline = pipeline_of(folder)
    pipeline.load_textual_inversion(result.folder)
    options = {"height": SIZE, "width": SIZE, "num_inference_steps": 2}
    image = np.asarray(pipeline(PROMPT, generator=torch.Generator().manual_seed(42), **options).images[0])
    kept = np.asarray(Image.open(next((result.folder / "samples" / "best").iterdir())))
    assert np.abs(image.astype(int) - kept).max() <= 1
    assert len(list((result.folder / "samples").iterdir())) == 3


def test_every_vector_starts_as_the_known_token_and_prompts_have_them_all(folder):
    task = loaded(folder, num_vectors=2, images_per_prompt=0)
    (head,) = task.head
    first = pipeline_of(folder).text_encoder.get_input_embeddings().weight
    number = len(first)
    added = task.model.get_submodule(head).weight
    # c as a word of its own is the last but 23 of the vocabulary's 54.
    assert torch.equal(added, first[number - 24].expand(2, -1))
    ids = task.train[0].embeddings.tolist()
    assert [each for each in ids if each >= number] == [number, number + 1]
    known = torch.tensor([[0, 5, number - 24, 1]])
    model = task.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([[0, 5, number, 1]]))[0], model(known)[0])
        torch.testing.assert_close(model(known)[0], pipeline_of(folder).text_encoder.eval()(known)[0])


def test_a_base_in_half_precision(folder, tmp_path):
    settings = {"base_dtype": "bfloat16", "max_steps": 2, "eval_steps": 2, "images_per_prompt": 0}
    (result,) = run_recipe(load_recipe("textual-inversion"), tmp_path, chosen(folder, **settings))
    assert load_file(result.folder / "learned_embeds.safetensors")["<toy>"].dtype == torch.float32
    task = loaded(folder, **settings)
    assert {value.dtype for value in task.model.get_submodule(task.head[0]).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placeholder_token": None}, "placeholder_token is not given; accepted: a token, such as <toy>"),
        ({"initializer_token": None}, "initializer_token is not given"),
        ({"initializer_token": "ab"}, "initializer_token is 'ab', which is 2 tokens; accepted: one"),
        ({"placeholder_token": "a</w>", "instance_prompt": "a</w>"}, "placeholder_token is 'a</w>', which the tok"),
        (
            {"instance_prompt": "a toy"},
            "the prompt 'a toy' is without placeholder_token, <toy>; accepted: pr",
        ),
        (
            {"instance_prompt": "a b c d e f g h <toy>", "num_vectors": 8},
            "is 18 tokens; accepted by the model: at most 16",
        ),
        ({"method": "full"}, "method is 'full' with task 'token', which trains its head; accepted: head"),
        ({"recipe": "text-to-image", "method": "full"}, "placeholder_token is given with task 'concept'"),
    ],
)
def test_what_cannot_be(folder, settings, message):
    with pytest.raises(OptionError, match=message) as raised:
        loaded(folder, **settings)
    assert len(str(raised.value).splitlines()) == 1
