"""Save a pre-trained network and its full fine-tuning on the digits, for `lowrank-ldu compare`.

    python -P benchmarks/digits_update.py FOLDER

The network, the task and the learning rate are those of `lowrank-ldu demo`, with seed 0.
"""

import sys
from pathlib import Path

from safetensors.torch import save_model

from lowrank_ldu.demo.comparison import ComparisonSettings, fine_tune, pretrain
from lowrank_ldu.demo.methods import FullFineTuning, default_methods
from lowrank_ldu.finetuning.digits.data import load_digits_split


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    settings = ComparisonSettings()
    split = load_digits_split(settings.split_seed, shift=settings.shift)
    pretrained = pretrain(split, settings)
    save_model(pretrained.model, folder / "base.safetensors")
    (method,) = (method for method in default_methods() if isinstance(method, FullFineTuning))
    tuned, result = fine_tune(pretrained, method, split.training, split.test, seed=0, settings=settings.fine_tuning)
    save_model(tuned.model, folder / "tuned.safetensors")
    print(f"accuracy {result.initial_accuracy:.3f} before, {result.accuracy:.3f} after")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
