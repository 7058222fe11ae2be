"""Concepts taught to a tiny Stable Diffusion: it learns, its adapter is loaded anywhere, and its images are kept."""

import copy
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from tiny_diffusion import SETTINGS, SIZE, save_clip, save_images, save_pipeline, save_vit
from tiny_models import OPTIONS
from tiny_text_models import offline as offline_
from torch import nn
from typer.testing import CliRunner

from lowrank_ldu.adapters import export_lora, read_adapter
from lowrank_ldu.checkpoints import open_checkpoint
from lowrank_ldu.cli.app import app
from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import METHODS, Choice, MethodRequest, get_method, load_recipe, plan_runs, run_recipe, train
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.tasks import get_kind
from lowrank_ldu.finetuning.tasks.diffusion_samples import Sampler

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PROMPT = "a photo of sks dog"
offline = pytest.fixture(scope="module", autouse=True)(offline_)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("diffusion")
    save_pipeline(found / "model")
    save_vit(found / "vit")
    save_clip(found / "clip")
    save_images(found / "images")
    return found


@pytest.fixture(scope="module")
def task(folder):
    return loaded(folder, images_per_prompt=0)


def chosen(folder, method="lora", data="images", **settings):
    given = {**SETTINGS, "vae": str(folder / "model" / "vae"), "instance_prompt": PROMPT, **settings}
    if method == "full":
        del given["r"]
    return Choice(model=str(folder / "model"), data=str(folder / data), method=method, settings=given)


def trained(folder, out, method="lora", **settings):
    (result,) = run_recipe(load_recipe("text-to-image"), out, chosen(folder, method, **settings))
    return result


def loaded(folder, method="lora", **settings):
    config = configure(load_recipe("text-to-image"), "concept", chosen(folder, method, **settings), seed=42)
    return get_kind("text-to-image").load(config)


def unet_of(folder):
    return UNet2DConditionModel.from_pretrained(folder / "model", subfolder="unet").eval()


def inputs():
    drawn = torch.Generator().manual_seed(3)
    return torch.randn(2, 4, 16, 16, generator=drawn), torch.tensor([10, 700]), torch.randn(2, 5, 16, generator=drawn)


@torch.no_grad()
def predicted(model, dtype=torch.float32):
    noisy, timesteps, embeddings = inputs()
    return model.eval()(noisy.to(dtype), timesteps, encoder_hidden_states=embeddings.to(dtype)).sample


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def pipeline_of(folder, unet):
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model", unet=unet, **none)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_by(folder, unet):
    pipeline = pipeline_of(folder, unet)
    options = {"height": SIZE, "width": SIZE, "num_inference_steps": 2}
    return np.asarray(pipeline(PROMPT, generator=torch.Generator().manual_seed(42), **options).images[0])


def test_a_run_learns_and_its_adapter_is_loaded_by_peft_and_diffusers(folder, tmp_path):
    scored = {"dino_model": str(folder / "vit"), "clip_model": str(folder / "clip"), "images_per_prompt": 2}
    result = trained(folder, tmp_path, sample_steps=10, **scored)
    losses = [line["eval_loss"] for line in log_of(result.folder) if "eval_loss" in line]
    assert result.metrics["validation"]["loss"] == pytest.approx(min(losses))
    assert min(losses) < 0.99 * losses[0]
    assert result.record["best_step"] == 10 * (1 + losses.index(min(losses)))
    assert set(result.metrics["samples"]) == {"dino", "clip_i", "clip_t"}
    assert all(-1 <= value <= 1 for value in result.metrics["samples"].values())
    samples = {str(each.relative_to(result.folder / "samples")) for each in result.folder.rglob("*.png")}
    assert samples == {
        f"{each}-a-photo-of-sks-dog.png" for each in ("step-10/000", "step-20/000", "best/000", "best/001")
    }

    # PEFT puts its layers into the UNet that it is given.
    unet = unet_of(folder)
    before = predicted(unet)
    adapted = PeftModel.from_pretrained(unet, str(result.folder / "adapter"))
    by_peft = predicted(adapted)
    assert (by_peft - before).abs().max() > 1e-3
    kept = np.asarray(Image.open(result.folder / "samples" / "best" / "000-a-photo-of-sks-dog.png"))
    assert kept.shape == (SIZE, SIZE, 3)
    assert np.abs(image_by(folder, unet).astype(int) - kept).max() <= 1
    assert np.abs(image_by(folder, unet_of(folder)).astype(int) - kept).max() > 1

    # As a file of diffusers' own.
    layers = {
        name.removeprefix("base_model.model."): value for name, value in get_peft_model_state_dict(adapted).items()
    }
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "file", layers, unet_lora_adapter_metadata=adapted.peft_config["default"].to_dict()
    )
    pipeline = pipeline_of(folder, unet_of(folder))
    pipeline.load_lora_weights(tmp_path / "file")
    torch.testing.assert_close(predicted(pipeline.unet), by_peft, rtol=0, atol=1e-6)


def test_the_command_shows_the_loss_of_validation(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    choice = chosen(folder, max_steps=2, eval_steps=2, images_per_prompt=0)
    words = ["finetune", "text-to-image", "--model", choice.model, "--data", choice.data, "--method", "lora"]
    for name, value in choice.settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "step 2 of 2: loss" in result.stderr
    assert "validation loss" in result.stdout


def test_an_adapter_of_ldu_is_exported_to_lora_with_the_same_predictions(folder, tmp_path):
    result = trained(folder, tmp_path, "loldu", images_per_prompt=0)
    assert "samples" not in result.metrics
    with open_checkpoint(folder / "model" / "unet") as base:
        export_lora(read_adapter(result.folder / "adapter"), base, tmp_path / "lora")

    # In double precision: this UNet makes a thousandth out of what single precision rounds.
    def by(adapter):
        return PeftModel.from_pretrained(nn.Module.double(unet_of(folder)), str(adapter))

    own, as_lora = by(result.folder / "adapter"), by(tmp_path / "lora")
    expected = predicted(nn.Module.double(own), torch.float64)
    assert (expected - predicted(unet_of(folder))).abs().max() > 0.1
    found = [predicted(nn.Module.double(model), torch.float64) for model in (as_lora, as_lora.merge_and_unload())]
    for each in found:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-4)


UNFIT = {"head"}  # there is none
QUICK = {"full", "lora", "loldu", "ldu-basis"}
FITTING = {**OPTIONS, "lora": {"r": 2}, "melora": {"r": 2, "n": 2, "lora_alpha": 2}}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.longer) for name in METHODS if name not in UNFIT],
)
def test_every_method_that_fits_trains_saves_and_merges(task, name, tmp_path):
    method = get_method(name)
    batch = task.collator([task.train[place] for place in range(len(task.train))])

    def prepared():
        request = MethodRequest(
            targets=TARGETS, seed=3, batches=[batch], loss=task.loss, task_type=task.task_type, total_steps=8
        )
        return method.prepare(copy.deepcopy(task.model), FITTING.get(name, {}), request)

    found = prepared()
    assert found.trained_numbers == found.expected_numbers > 0
    optimizer = torch.optim.AdamW(found.parameter_groups(1e-2, head_lr=None, weight_decay=0.01))
    losses = []
    found.model.eval()  # of fixed noise
    for _ in range(6):
        loss = task.loss(found.model, batch)
        loss.backward()
        optimizer.step()
        found.after_step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], losses
    after = predicted(found.model)
    found.save(tmp_path)
    again = prepared()
    again.load(tmp_path)
    torch.testing.assert_close(predicted(again.model), after, rtol=0, atol=1e-5)
    if name != "beft":  # some of the layers have no bias that it could be added to
        # In double precision: this UNet makes a thousandth out of what single precision rounds.
        found.model = nn.Module.double(found.model)
        double = [predicted(model, torch.float64) for model in (found.model, found.merged())]
        torch.testing.assert_close(*double, rtol=0, atol=1e-6)


def by_hand(task, model, rows, seeds, prediction):
    """The loss of DreamBooth by its definition, an image at a time."""
    schedule = task.loss.schedule
    losses = []
    for row, seed in zip(rows, seeds, strict=True):
        drawn = torch.Generator().manual_seed(seed)
        first, noise = (torch.randn(1, *row.mean.shape, generator=drawn) for _ in range(2))
        (place,) = torch.randint(1000, (1,), generator=drawn)
        latents = (row.mean + row.deviation * first) * 0.18215
        alpha = schedule.alphas_cumprod[place]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        found = model(noisy, place, encoder_hidden_states=row.embeddings[None]).sample
        losses.append(nn.functional.mse_loss(found, target))
    return losses


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_the_loss_is_that_of_the_definition(task, tmp_path, prediction):
    if prediction != "epsilon":
        save_pipeline(tmp_path / "model", prediction)
        save_images(tmp_path / "images")
        task = loaded(tmp_path, images_per_prompt=0)
    rows = [task.validation[place] for place in range(5)]
    assert len(task.validation) == 8
    assert torch.equal(rows[0].mean, rows[4].mean)
    batch = task.collator(rows)
    model = task.model.eval()
    losses = by_hand(task, model, rows, range(5), prediction)
    assert len({round(float(each), 6) for each in losses}) == 5
    for _ in range(2):
        torch.testing.assert_close(task.loss(model, batch), torch.stack(losses).mean())
    # In training it is drawn from the global generator, another one each time.
    model.train()
    torch.manual_seed(1)
    first, second = (task.loss(model, batch) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(task.loss(model, batch), first)
    assert not torch.equal(first, second)


@torch.no_grad()
def test_processes_draw_noise_of_their_own(task, monkeypatch):
    model = copy.deepcopy(task.model).train()
    batch = task.collator([task.train[0]])

    def losses(processes, place):
        state = SimpleNamespace(num_processes=processes, process_index=place)
        monkeypatch.setattr("accelerate.PartialState", lambda: state)
        torch.manual_seed(1)
        return [float(task.loss(model, batch)) for _ in range(2)]

    alone, first, second = losses(1, 0), losses(2, 0), losses(2, 1)
    assert [first[0], second[0]] == alone
    assert len({*first, *second}) == 4


@pytest.mark.longer
def test_two_processes_train_together_and_one_of_them_writes(folder, tmp_path):
    choice = chosen(folder, max_steps=3, eval_steps=3, logging_steps=1, sample_steps=3, images_per_prompt=1)
    words = ["finetune", "text-to-image", "--model", choice.model, "--data", choice.data, "--method", "lora"]
    for name, value in choice.settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    names = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "lowrank_ldu", *words, "--out", "out"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **names}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    run = tmp_path / "out" / "concept" / "seed-42"
    assert [line["step"] for line in log_of(run) if "loss" in line] == [1, 2, 3]
    assert len(list(run.rglob("*.png"))) == 2


def test_images_of_the_class_add_their_loss(folder, tmp_path):
    save_images(folder / "class", 6)
    of_class = {
        "with_prior_preservation": True,
        "class_data": str(folder / "class"),
        "class_prompt": "a photo of a dog",
    }
    task = loaded(folder, images_per_prompt=0, prior_loss_weight=0.25, **of_class)
    assert len(task.train) == 6
    assert len(task.validation) == 8
    pairs = [task.train[place] for place in (0, 4, 5)]
    assert torch.equal(pairs[0][0].mean, pairs[1][0].mean)
    model = task.model.eval()
    with torch.no_grad():
        found = task.loss(model, task.collator(pairs))
        parts = [by_hand(task, model, each, [row.seed for row in each], "epsilon") for each in zip(*pairs, strict=True)]
    own, other = (torch.stack(losses).mean() for losses in parts)
    torch.testing.assert_close(found, own + 0.25 * other)
    assert len({row.seed for pair in pairs for row in pair}) == 6
    result = trained(folder, tmp_path, max_steps=2, eval_steps=2, images_per_prompt=0, **of_class)
    assert result.metrics["validation"]["loss"] > 0


def test_images_in_training_change_nothing(folder, tmp_path):
    some = [
        trained(folder, tmp_path / str(every), max_steps=6, eval_steps=3, images_per_prompt=0, sample_steps=every)
        for every in (2, 6)
    ]
    assert [line.get("loss", line.get("eval_loss")) for line in log_of(some[0].folder)] == [
        line.get("loss", line.get("eval_loss")) for line in log_of(some[1].folder)
    ]
    assert len(list(some[0].folder.rglob("*.png"))) == 3


def test_sampling_leaves_generators_and_modes_alone(folder, task):
    pipeline = pipeline_of(folder, unet_of(folder))
    model = copy.deepcopy(task.model).train()
    model.conv_in.eval()
    state = torch.get_rng_state()
    first, second = (Sampler(pipeline, "unet", [PROMPT], SIZE, 2, 7.5, 5).generate(model, number) for number in (1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.conv_in.training
    assert first[0].image.tobytes() == second[0].image.tobytes() != second[1].image.tobytes()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_checkpointed_gradients_are_the_same(folder, tmp_path):
    some = [
        trained(folder, tmp_path / str(way), max_steps=3, eval_steps=3, images_per_prompt=0, gradient_checkpointing=way)
        for way in (False, True)
    ]
    assert some[0].metrics == some[1].metrics


@pytest.mark.parametrize("method", ["lora", "loldu"])
def test_a_base_in_half_precision_has_trained_numbers_in_single(folder, method, tmp_path):
    trained(folder, tmp_path, method, base_dtype="bfloat16", images_per_prompt=1, max_steps=2, eval_steps=2)
    task = loaded(folder, method, base_dtype="bfloat16", images_per_prompt=0)
    request = MethodRequest(targets=TARGETS, loss=task.loss)
    found = get_method(method).prepare(task.model, {"r": 2}, request)
    assert {value.dtype for value in found.trained().values()} == {torch.float32}
    assert found.model.get_submodule("base_model.model.conv_in").weight.dtype == torch.bfloat16


@pytest.mark.parametrize("given", [{"method": "full"}, {"bias": "all"}, {"modules_to_save": ["conv_out"]}])
def test_numbers_of_the_base_are_not_trained_in_half_precision(folder, given):
    with pytest.raises(OptionError, match="base_dtype is 'bfloat16' with method .*; accepted: float32"):
        loaded(folder, base_dtype="bfloat16", **given)


def test_images_that_are_held_out_validate(folder):
    task = loaded(folder, validation_images=1, validation_draws=3)
    assert (len(task.train), len(task.validation)) == (3, 3)
    means = [row.mean for row in (*(task.train[place] for place in range(3)), task.validation[0])]
    assert len({tuple(mean.flatten().tolist()) for mean in means}) == 4
    assert all(torch.equal(task.validation[place].mean, means[3]) for place in range(3))
    with pytest.raises(OptionError, match="validation_images is 4 of 4; accepted: 0 to 3"):
        loaded(folder, validation_images=4)


def test_the_schedule_of_noise_is_that_of_the_model(task):
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.equal(task.loss.schedule.alphas_cumprod, schedule.alphas_cumprod)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 33}, "resolution is 33; accepted by the model: multiples of 2"),
        ({"instance_prompt": None}, "instance_prompt is not given, and .*0.png has no text; accepted: instance_prompt"),
        ({"vae": "nowhere/none"}, "vae is 'nowhere/none', which diffusers cannot load"),
        ({"dino_model": "nowhere/none"}, "dino_model is 'nowhere/none', which transformers cannot load"),
        ({"with_prior_preservation": True}, "with_prior_preservation is True without class_data"),
        ({"num_vectors": 2}, "num_vectors is given with task 'concept'; accepted: task token"),
        ({"class_prompt": "a dog"}, "class_prompt is given; accepted: only with with_prior_preservation = true"),
        ({"resolution": 0}, "resolution is 0; accepted: an integer from 1 on"),
        ({"base_dtype": "int8"}, "base_dtype is 'int8'; accepted: 'float32' or 'float16' or 'bfloat16'"),
        ({"validation_prompts": "a dog"}, "validation_prompts is 'a dog'; accepted: list"),
        ({"validation_prompts": []}, r"validation_prompts is \[\]; accepted: prompts"),
        ({"prior_loss_weight": -1.0}, "prior_loss_weight is -1.0; accepted: a finite number from 0 on"),
    ],
)
def test_options_that_cannot_be(folder, settings, message):
    with pytest.raises(OptionError, match=message) as raised:
        loaded(folder, **{"images_per_prompt": 1, **settings})
    assert len(str(raised.value).splitlines()) == 1


def test_models_that_score_are_loaded_to_score_alone(folder, tmp_path):
    """A trial of a comparison scores nothing; a run that will is stopped before training."""
    vit = tmp_path / "vit"
    shutil.copytree(folder / "vit", vit)
    (vit / "model.safetensors").unlink()
    settings = chosen(folder, dino_model=str(vit), clip_model="", images_per_prompt=1, max_steps=1, sample_steps=None)
    (run,) = plan_runs(load_recipe("text-to-image"), tmp_path / "out", settings)
    with pytest.raises(OptionError, match="dino_model is '.*vit', which transformers cannot load"):
        train(run)
    assert not (run.folder / "metrics.json").exists()
    assert train(run, tests=False).record["not_evaluated"] == ["samples"]


def test_half_precision_of_a_gpu_is_refused_where_there_is_none(folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(OptionError, match="fp16 is True, and there is no GPU that it is for; accepted: fp16 = false"):
        trained(folder, tmp_path, fp16=True)


def test_another_pipeline_is_refused(folder, tmp_path):
    save_pipeline(tmp_path / "sample", "sample")
    save_images(tmp_path / "images", 1)
    with pytest.raises(OptionError, match="which predicts 'sample'; accepted: epsilon or v_prediction"):
        get_kind("text-to-image").load(
            configure(
                load_recipe("text-to-image"),
                "concept",
                Choice(
                    model=str(tmp_path / "sample"),
                    data=str(tmp_path / "images"),
                    settings={**SETTINGS, "vae": str(folder / "model" / "vae"), "instance_prompt": PROMPT},
                ),
                seed=0,
            )
        )
