"""A tiny pipeline of Stable Diffusion's architecture, models that score images, and images to train on."""

import json
import string

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SIZE = 32
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def tokenizer(folder):
    """A tokenizer of letters."""
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *string.ascii_lowercase,
        *(f"{each}</w>" for each in string.ascii_lowercase),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def save_pipeline(folder, prediction_type="epsilon"):
    torch.manual_seed(0)
    words = tokenizer(folder / "tokenizer")
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **ends, **TEXT)),
        tokenizer=words,
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_vit(folder):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=SIZE, patch_size=8
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def save_clip(folder):
    torch.manual_seed(0)
    words = tokenizer(folder)
    vision = {**TEXT, "image_size": SIZE, "patch_size": 8}
    text = {**TEXT, "vocab_size": len(words), "eos_token_id": words.eos_token_id}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    CLIPProcessor(images, words).save_pretrained(folder)
    return folder


def save_images(folder, number=4, size=(40, 36)):
    """Images of smooth colors, other than square."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(0)
    for place in range(number):
        colors = drawn.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(colors).resize(size, Image.Resampling.BILINEAR).save(folder / f"{place}.png")
    return folder


SETTINGS = {
    "resolution": SIZE,
    "max_steps": 20,
    "eval_steps": 10,
    "logging_steps": 5,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
    "fp16": False,
    "r": 4,
    "validation_draws": 2,
    "inference_steps": 2,
    "dino_model": "",
    "clip_model": "",
}
