"""Save a pre-trained network and its full fine-tuning on the digits, for `lowrank-ldu compare`.

    python -P benchmarks/digits_update.py FOLDER

The network, the task and the learning rate are those of `lowrank-ldu demo`, with seed 0.
"""

import sys
from pathlib import Path

from safetensors.torch import save_model

from lowrank_ldu.finetuning import Choice, load_recipe, run_recipe
from lowrank_ldu.finetuning.digits import pretrained_digits_vit
from lowrank_ldu.finetuning.digits.determinism import single_threaded
from lowrank_ldu.finetuning.methods import MethodRequest, get_method
from lowrank_ldu.finetuning.run_directory import RunDirectory


def main(folder):
    base, _ = pretrained_digits_vit()
    folder.mkdir(parents=True, exist_ok=True)
    save_model(base, folder / "base.safetensors")
    choice = Choice(method="full", settings={"eval_delay": 30})
    with single_threaded():
        (result,) = run_recipe(load_recipe("digits"), folder / "runs", choice, seeds=[0])
    request = MethodRequest(targets=[], trained_whole=["classifier"])
    prepared = get_method("full").prepare(base, {}, request)
    prepared.load(RunDirectory(result.folder).adapter)
    save_model(prepared.merged(), folder / "tuned.safetensors")
    print(f"accuracy {result.metrics['test']['accuracy']:.3f} after")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
