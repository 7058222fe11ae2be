"""Train the same tiny run twice: at once, and by processes that are killed one after the other; run as a script."""

import json
import os
import random
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from tiny_images import save_images, save_vit
from tiny_text_models import data_set, save_model

from lowrank_ldu.finetuning import Choice, load_recipe, run_recipe
from lowrank_ldu.finetuning import trainer as _trainer  # noqa: F401  # loaded before processes are forked

SETTINGS = {
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


def text(folder):
    save_model(folder / "model")
    data_set(train=80).save_to_disk(folder / "data")
    return "glue", "sst2", {"max_length": 16}


def images(folder):
    save_vit(folder / "model", hidden_dropout_prob=0.1)
    save_images(folder / "data", train=80, validation=12, test=0)
    return "images", "images", {"bf16": False}


# A run of each kind: its files are written to the folder; the recipe, the task and settings are returned.
KINDS = {"text": text, "images": images}


def train(out, recipe, task, choice, last_event):
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
    status = 1
    try:
        run_recipe(load_recipe(recipe), out, choice, tasks=[task], seeds=[5])
        os.write(writing, str(count).encode())
        status = 0
    finally:
        os._exit(status)


def main(folder, kills, kind):
    torch.set_num_threads(1)
    recipe, task, settings = KINDS[kind](folder)
    places = {"model": str(folder / "model"), "data": str(folder / "data")}
    choice = Choice(**places, method="lora", settings={**SETTINGS, **settings})
    status, events = train(folder / "whole", recipe, task, choice, None)
    statuses = [status]
    moments = random.Random(0)  # noqa: S311
    # What is done already is not done again, so that later processes come nearer to the end.
    for _ in range(kills):
        moment = moments.randrange(1, events // 2)
        statuses.append(train(folder / "killed", recipe, task, choice, moment)[0])
    statuses.append(train(folder / "killed", recipe, task, choice, None)[0])
    print(json.dumps({"statuses": statuses, "events": events, "task": task}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
