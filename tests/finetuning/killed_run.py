"""Train the same tiny run twice: at once, and by processes that are killed one after the other; run as a script."""

import gc
import json
import os
import random
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from tiny_text_models import data_set, save_model

from lowrank_ldu.finetuning import Choice, load_recipe, run_recipe
from lowrank_ldu.finetuning import trainer as _trainer  # noqa: F401  # loaded before processes are forked

SETTINGS = {
    "max_length": 16,
    "num_train_epochs": 3,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    # Five steps in an epoch: checkpoints between its ends, too.
    "save_steps": 3,
    "logging_steps": 2,
    "head_epochs": 1,
    "r": 4,
}
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree"}


def of_texts(folder):
    """Save a model and data; return the recipe that trains it, and what is chosen."""
    save_model(folder / "model")
    data_set(train=80).save_to_disk(folder / "data")
    return "glue", Choice(model=str(folder / "model"), data=str(folder / "data"), method="lora", settings=SETTINGS)


def of_concept(folder):
    """As `of_texts`; five steps between evaluations, checkpoints and images between them."""
    from tiny_diffusion import SETTINGS as SIZES
    from tiny_diffusion import save_images, save_pipeline

    save_pipeline(folder / "model")
    settings = {
        **SIZES,
        "vae": str(folder / "model" / "vae"),
        "instance_prompt": "a photo of sks dog",
        "max_steps": 15,
        "eval_steps": 5,
        "save_steps": 3,
        "logging_steps": 2,
        "sample_steps": 4,
        "images_per_prompt": 1,
    }
    data = save_images(folder / "images")
    return "text-to-image", Choice(model=str(folder / "model"), data=str(data), method="lora", settings=settings)


def of_images(folder):
    """As `of_texts`; five steps in an epoch, too."""
    from tiny_images import save_images, save_vit

    save_vit(folder / "model", hidden_dropout_prob=0.1)
    save_images(folder / "data", train=80, validation=12, test=0)
    settings = {**SETTINGS, "bf16": False}
    del settings["max_length"]
    return "images", Choice(model=str(folder / "model"), data=str(folder / "data"), method="lora", settings=settings)


def of_instructions(folder):
    """As `of_texts`; five steps in an epoch, too."""
    from tiny_language_models import save_instructions, save_llama

    save_llama(folder / "model")
    data = save_instructions(folder / "data.json", 88)
    own = {"max_length": 64, "validation_rows": 8, "dtype": "float32", "bf16": False, "lm_eval_tasks": []}
    settings = {**SETTINGS, **own, "head_epochs": 0, "lora_dropout": 0.1}
    return "instruct", Choice(model=str(folder / "model"), data=str(data), method="lora", settings=settings)


RUNS = {"sst2": of_texts, "images": of_images, "alpaca": of_instructions, "concept": of_concept}


def train(out, run, task, last_event):
    """Train in a process of its own, which is killed at an event; return its status and the number of events."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), int(said or 0)
    count = 0

    def at_event(event, arguments):
        nonlocal count
        if event in EVENTS and str(out) in str(arguments[0]):
            count += 1
            if count == last_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(at_event)
    recipe, choice = run
    status = 1
    try:
        run_recipe(load_recipe(recipe), out, choice, tasks=[task], seeds=[5])
        os.write(writing, str(count).encode())
        status = 0
    finally:
        os._exit(status)


def main(folder, kills, task):
    torch.set_num_threads(1)
    # Forked processes share what is imported, and do not look through it for garbage.
    gc.freeze()
    run = RUNS[task](folder)
    status, events = train(folder / "whole", run, task, None)
    statuses = [status]
    moments = random.Random(0)  # noqa: S311
    # What is done already is not done again, so that later processes come nearer to the end.
    statuses += [train(folder / "killed", run, task, moments.randrange(1, events // 2))[0] for _ in range(kills)]
    statuses.append(train(folder / "killed", run, task, None)[0])
    print(json.dumps({"statuses": statuses, "events": events}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
