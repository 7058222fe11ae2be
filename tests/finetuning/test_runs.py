"""Runs on tiny models of true architectures: they learn, are logged and saved, and can be loaded again."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_text_models import data_set, offline, save_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lowrank_ldu.errors import OptionError, OutputError, RunDirectoryError, TrainingError
from lowrank_ldu.finetuning import Choice, load_recipe, median_scores, plan_runs, run_recipe, trainer
from lowrank_ldu.finetuning import runner as runs
from lowrank_ldu.finetuning.checkpoints import is_whole, trainer_state, whole_checkpoints
from lowrank_ldu.finetuning.manifest import peak_memory, reset_peak_memory
from lowrank_ldu.finetuning.methods import ldu
from lowrank_ldu.finetuning.trained import (
    check_numbers,
    load_trained,
    refuse_still,
    refuse_unconnected,
    save_trained,
    without_gradient,
)
from lowrank_ldu.finetuning.trainer import RecipeTrainer
from lowrank_ldu.fitting import fit_basis, loss_gradients, target_layers

SETTINGS = {
    "max_length": 16,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 8,
    "logging_steps": 4,
    "learning_rate": 2e-2,
}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Models and a data set, which all tests share."""
    folder = tmp_path_factory.mktemp("base")
    for kind in ("roberta", "bert"):
        save_model(folder / kind, kind, **WITHOUT_DROPOUT)
    data_set(train=128).save_to_disk(folder / "sst2")
    data_set(("sentence1", "sentence2"), label=lambda good: 4.0 * good + 0.5).save_to_disk(folder / "stsb")
    return folder


def choice(base, method="lora", model="roberta", **settings):
    options = {"lora": {"r": 4}, "loldu": {"r": 16, "alpha": 16}, "ldu-basis": {"fit_rank": 4}}[method]
    return Choice(method=method, model=str(base / model), data=str(base), settings={**SETTINGS, **options, **settings})


def run(base, out, task="sst2", seeds=(0,), **options):
    return run_recipe(load_recipe("glue"), out, choice(base, **options), tasks=[task], seeds=seeds)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("finished") / "out")[0]


def log_of(result):
    return [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]


def losses(result):
    return [line["loss"] for line in log_of(result) if "loss" in line]


def test_a_basis_is_fitted_to_batches_of_like_lengths_where_training_has_them(base, tmp_path, monkeypatch):
    fitted = {}

    def fit(model, data, **options):
        name = "grouped" if "grouped" not in fitted else "random"
        fitted[name] = [{key: value.clone() for key, value in batch.items()} for batch in data]
        layers = target_layers(model, options["targets"])
        fitted[f"{name} sum"] = {layer.name: total.clone() for layer, total in loss_gradients(model, layers, data)}
        return fit_basis(model, data, **options)

    monkeypatch.setattr(ldu, "fit_basis", fit)
    for strategy in ("group_by_length", "random"):
        run(base, tmp_path / strategy, method="ldu-basis", max_steps=1, train_sampling_strategy=strategy, fit_batches=8)
    grouped, random = fitted["grouped"], fitted["random"]
    assert len(grouped) == len(random) == 16
    assert all(batch["labels"].shape == (8,) for batch in grouped)
    for start in (0, 8):
        rows = [
            sorted(
                tokens[kept.bool()].tolist()
                for batch in batches[start : start + 8]
                for tokens, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            )
            for batches in (grouped, random)
        ]
        assert rows[0] == rows[1]
    padded = [sum(int((batch["attention_mask"] == 0).sum()) for batch in batches) for batches in (grouped, random)]
    assert padded[0] < 0.5 * padded[1]
    widths = [batch["input_ids"].shape[1] for batch in grouped[:8]]
    assert widths != sorted(widths)
    # Sums of the same rows in another order: some hundred terms, each rounded once.
    for name, total in fitted["grouped sum"].items():
        torch.testing.assert_close(total, fitted["random sum"][name], rtol=1e-4, atol=1e-5 * float(total.abs().max()))


def test_a_run_learns_and_leaves_everything_in_its_folder(finished):
    assert finished.folder.parts[-2:] == ("sst2", "seed-0")
    first, *_ = found = losses(finished)
    assert sum(found[-4:]) / 4 < 0.75 * first
    assert finished.score >= 0.7
    names = {each.name for each in finished.folder.iterdir() if not each.name.startswith(".")}
    assert names == {
        "config.resolved.json",
        "manifest.json",
        "log.jsonl",
        "checkpoints",
        "adapter",
        "predictions",
        "metrics.json",
    }
    config = json.loads((finished.folder / "config.resolved.json").read_bytes())
    assert (config["method_options"]["r"], config["training"]["learning_rate"], config["seed"]) == (4, 0.02, 0)
    manifest = json.loads((finished.folder / "manifest.json").read_bytes())
    assert set(manifest["same"]) == {"model", "data", "rows_in_a_step"}
    assert manifest["same"]["rows_in_a_step"] == 8
    assert {"torch", "transformers", "peft", "lowrank_ldu", "python"} <= manifest["starts"][0]["versions"].keys()
    assert manifest["starts"][0]["machine"]["cores"] >= 1
    # Of the 80 steps, a loss every fourth one, and an evaluation for each epoch.
    steps = [line["step"] for line in log_of(finished)]
    assert steps == sorted(steps)
    assert [line["step"] for line in log_of(finished) if "eval_accuracy" in line] == [16, 32, 48, 64, 80]
    record = json.loads((finished.folder / "metrics.json").read_bytes())
    # Two matrices of 16 x 4 in query and in value of two layers; 16 x 16, 16, 16 x 2 and 2 of the head.
    assert (record["numbers"], record["numbers_trained_whole"]) == (2 * 2 * 2 * 16 * 4, 306)
    assert 0 < record["adapter_bytes"] < 20_000


def test_a_basis_that_adapters_share_does_not_count_as_the_adapter(base, tmp_path, finished):
    (result,) = run(base, tmp_path / "out", method="ldu-basis", num_train_epochs=1)
    record = json.loads((result.folder / "metrics.json").read_bytes())
    (shared,) = (result.folder / "adapter").glob("basis-*.safetensors")
    assert record["shared_bytes"] == shared.stat().st_size > 4 * 4 * 4 * (16 + 16)
    assert 0 < record["adapter_bytes"] < 30_000
    assert json.loads((finished.folder / "metrics.json").read_bytes())["shared_bytes"] == 0


def test_a_ready_basis_makes_the_run_that_fitted_it(base, tmp_path):
    (fitted,) = run(base, tmp_path / "fitted", method="ldu-basis", num_train_epochs=1)
    (file,) = (fitted.folder / "adapter").glob("basis-*.safetensors")
    ready = tmp_path / "basis.safetensors"
    shutil.copy(file, ready)
    as_fitted = {"r": 4, "alpha": None, "train_sigma": False, "parametrization": "normalized", "num_train_epochs": 1}
    (found,) = run(base, tmp_path / "ready", method="loldu", basis_file=str(ready), **as_fitted)
    assert (found.folder / "adapter" / file.name).read_bytes() == file.read_bytes()
    assert losses(found) == losses(fitted)
    assert found.record["metrics"] == fitted.record["metrics"]
    assert found.record["numbers"] == fitted.record["numbers"] == 4 * 4
    # Another file is another configuration.
    (other,) = run(base, tmp_path / "other", method="ldu-basis", num_train_epochs=1, fit_source="scaled_gradient")
    shutil.copy(next((other.folder / "adapter").glob("basis-*.safetensors")), ready)
    with pytest.raises(RunDirectoryError, match=r"method_options\.basis_digest was '.*' and is '"):
        run(base, tmp_path / "ready", method="loldu", basis_file=str(ready), **as_fitted)


def test_a_head_that_was_trained_alone_is_where_training_begins(base, tmp_path):
    def first_loss(name, **options):
        (result,) = run(base, tmp_path / name, max_steps=8, learning_rate=1e-5, logging_steps=8, **options)
        return losses(result)[0]

    # So many steps hardly change anything at this rate.
    plain = first_loss("plain", head_learning_rate=1e-5)
    assert first_loss("head", head_epochs=20, head_learning_rate=5e-3) < 0.95 * plain


def test_the_best_epoch_counts(finished):
    scores = {line["step"]: line["eval_accuracy"] for line in log_of(finished) if "eval_accuracy" in line}
    best = max(scores.values())
    assert finished.record["best_step"] == min(step for step, score in scores.items() if score == best)
    assert finished.score == best


def test_checkpoints_hold_the_trained_numbers_alone(finished):
    whole = whole_checkpoints(finished.folder / "checkpoints")
    # The latest two, and the best one.
    assert {each.name for each in whole} == {
        "checkpoint-64",
        "checkpoint-80",
        f"checkpoint-{finished.record['best_step']}",
    }
    trained = 4 * (finished.record["numbers"] + finished.record["numbers_trained_whole"])
    for checkpoint in whole:
        assert trained <= (checkpoint / "trained.safetensors").stat().st_size < trained + 4000
        # AdamW's two moments are as many again.
        assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 3 * trained + 60_000


def test_the_saved_adapter_predicts_the_same(base, finished):
    """PEFT alone loads it on the base; the tokenizer is the base's."""
    model = AutoModelForSequenceClassification.from_pretrained(base / "roberta", num_labels=2)
    model = PeftModel.from_pretrained(model, finished.folder / "adapter").eval()
    rows = data_set()["validation"]
    inputs = AutoTokenizer.from_pretrained(base / "roberta")(
        rows["sentence"][:], padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    labels = torch.tensor(rows["label"][:])
    assert (logits.argmax(1) == labels).double().mean() == finished.score
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert loss == pytest.approx(finished.metrics["validation"]["loss"], rel=1e-5)


def test_a_finished_run_is_read_and_not_run_again(base, finished, monkeypatch):
    monkeypatch.setattr(runs, "Training", None)
    again = run(base, finished.folder.parents[1])[0]
    assert again.record == finished.record


def test_another_configuration_is_refused_and_the_difference_named(base, finished):
    with pytest.raises(
        RunDirectoryError, match=r"\(method_options.r was 4 and is 2; training.weight_decay was 0.0 and is 0.1\)"
    ):
        run(base, finished.folder.parents[1], r=2, weight_decay=0.1)


@pytest.mark.parametrize(("method", "model"), [("loldu", "bert"), ("loldu", "roberta"), ("lora", "bert")])
def test_methods_on_architectures(base, tmp_path, method, model):
    result = run(base, tmp_path, method=method, model=model)[0]
    found = losses(result)
    assert sum(found[-4:]) / 4 < found[0]
    assert result.numbers == {"loldu": 2 * 2 * 17, "lora": 512}[method]


def test_numbers_are_predicted_and_seeds_have_a_median(base, tmp_path):
    results = run(base, tmp_path, "stsb", seeds=(0, 1, 2), num_train_epochs=2)
    assert set(results[0].metrics["validation"]) == {"loss", "pearson", "spearman"}
    scores = sorted(each.score for each in results)
    assert len(set(scores)) == 3
    assert median_scores(results)["stsb"]["validation"]["pearson"] == scores[1]


def test_evaluation_by_steps_and_an_end_within_an_epoch(base, tmp_path):
    result = run(base, tmp_path / "a", eval_strategy="steps", eval_steps=5, max_steps=12, save_total_limit=9)[0]
    assert [line["step"] for line in log_of(result) if "eval_loss" in line] == [5, 10, 12]
    assert [each.name for each in whole_checkpoints(result.folder / "checkpoints")] == [
        "checkpoint-5", "checkpoint-10", "checkpoint-12",
    ]  # fmt: skip
    result = run(base, tmp_path / "b", max_steps=12)[0]
    assert [line["step"] for line in log_of(result) if "eval_loss" in line] == [12]


def test_without_evaluations_the_last_step_is_taken(base, tmp_path):
    last = run(base, tmp_path / "a", num_train_epochs=3, eval_delay=3)[0]
    result = run(base, tmp_path / "b", num_train_epochs=3, eval_strategy="no")[0]
    assert result.metrics == last.metrics
    assert not [line for line in log_of(result) if "eval_loss" in line]
    record = json.loads((result.folder / "metrics.json").read_text())
    assert record["best_step"] == record["steps"] == 48
    # Checkpoints of epochs are there to go on from; the last one is that of the end.
    assert [each.name for each in whole_checkpoints(result.folder / "checkpoints")] == [
        "checkpoint-32", "checkpoint-48",
    ]  # fmt: skip
    result = run(base, tmp_path / "c", max_steps=12, eval_strategy="no")[0]
    assert [each.name for each in whole_checkpoints(result.folder / "checkpoints")] == ["checkpoint-12"]


def test_accumulated_batches_are_one_larger_batch(base, tmp_path):
    options = {"max_steps": 4, "logging_steps": 1}
    whole, parts = (
        run(
            base,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            **options,
        )
        for size in (8, 2)
    )
    entries = [[line for line in log_of(result[0]) if "loss" in line] for result in (whole, parts)]
    assert len(entries[0]) == 4
    for first, second in zip(*entries, strict=True):
        assert (second["loss"], second["grad_norm"]) == pytest.approx((first["loss"], first["grad_norm"]), rel=1e-3)


def test_the_warmup_is_a_part_of_all_steps(base, tmp_path):
    result = run(base, tmp_path, warmup_ratio=0.25, logging_steps=1, num_train_epochs=1)[0]
    rates = [line["learning_rate"] for line in log_of(result) if "loss" in line]
    # A quarter of 16 steps rises, and the first one is at zero.
    assert rates.index(max(rates)) == 4
    assert rates[:5] == pytest.approx([0, 0.005, 0.01, 0.015, 0.02])
    assert trainer_state(whole_checkpoints(result.folder / "checkpoints")[-1])["max_steps"] == 16


def test_a_loss_that_is_no_number_stops_and_checkpoints_stay(base, tmp_path, monkeypatch, finished):
    def loss_of(self, model, inputs, return_outputs=False, **_):
        loss, outputs = super(RecipeTrainer, self).compute_loss(model, inputs, return_outputs=True)
        loss = loss * float("nan") if self.state.global_step == 20 and model.training else loss
        return (loss, outputs) if return_outputs else loss

    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "compute_loss", loss_of)
        with pytest.raises(TrainingError, match="the loss is nan in step 21; accepted: a smaller learning_rate"):
            run(base, tmp_path)
    folder = tmp_path / "sst2" / "seed-0"
    assert [each.name for each in whole_checkpoints(folder / "checkpoints")] == ["checkpoint-16"]
    assert not (folder / "metrics.json").exists()
    (planned,) = plan_runs(load_recipe("glue"), tmp_path, choice(base), tasks=["sst2"], seeds=[0])
    assert planned.state() == "from step 16"
    # Once the reason is gone the run ends where an undisturbed one does.
    assert run(base, tmp_path)[0].metrics == finished.metrics


def test_a_full_disk_leaves_whole_checkpoints(base, tmp_path, monkeypatch, finished):
    save, saved = trainer.save_trained, []

    def fill(prepared, folder, **options):
        save(prepared, folder, **options)
        saved.append(folder)
        if len(saved) == 2:
            (folder / "trained.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_trained", fill)
        with pytest.raises(
            OutputError, match="checkpoint-32: cannot be written .*No space left.*the same command resumes"
        ):
            run(base, tmp_path)
    folder = tmp_path / "sst2" / "seed-0"
    assert not is_whole(folder / "checkpoints" / "checkpoint-32")
    result = run(base, tmp_path)[0]
    assert result.metrics == finished.metrics
    assert json.loads((folder / "manifest.json").read_bytes())["starts"][1]["from_step"] == 16


def test_a_full_disk_is_told_as_one_and_checkpoints_only_where_there_are_some(base, tmp_path, monkeypatch):
    def fill(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(trainer, "save_trained", fill)
    with pytest.raises(OutputError) as raised:
        run(base, tmp_path)
    said = "checkpoint-16: cannot be written (no space is left, or the file is larger than is allowed); there is no ch"
    assert said in str(raised.value)


def test_an_evaluation_before_the_first_step_is_no_best_one(base, tmp_path, monkeypatch):
    monkeypatch.setattr(RecipeTrainer, "evaluate", _falling(RecipeTrainer.evaluate))
    (result,) = run(base, tmp_path, eval_on_start=True, num_train_epochs=2)
    log = [line for line in log_of(result) if "eval_accuracy" in line]
    assert [(line["step"], line["eval_accuracy"]) for line in log] == [(0, 1.0), (16, 0.5), (32, pytest.approx(1 / 3))]
    assert result.record["best_step"] == 16


def _falling(evaluate):
    """Evaluations whose accuracy falls each time."""
    counted = []

    def evaluated(self, *given, **named):
        log = self.log

        def changed(logs, *others):
            counted.append(logs)
            log({**logs, "eval_accuracy": 1 / len(counted)}, *others)

        self.log = changed
        try:
            return evaluate(self, *given, **named)
        finally:
            self.log = log

    return evaluated


def _prepared(base):
    """What the method makes of a model, outside of a run."""
    from lowrank_ldu.finetuning.methods import MethodRequest, get_method

    model = AutoModelForSequenceClassification.from_pretrained(base / "roberta", num_labels=2)
    method = get_method("lora")
    request = MethodRequest(["query", "value"], ["classifier"], 0, None, None, "SEQ_CLS")
    return method.prepare(model, method.options({"r": 4}), request)


def test_numbers_and_gradients_are_checked(base):
    prepared = _prepared(base)
    assert check_numbers(prepared) == (512, 306)
    prepared.expected_numbers += 1
    with pytest.raises(
        TrainingError, match="512 numbers are trained beside classifier; accepted: 513, by the method's"
    ):
        check_numbers(prepared)
    with pytest.raises(TrainingError, match="no parameter of group '.*' has a gradient, base_model.*lora"):
        refuse_unconnected(prepared)
    prepared.model(input_ids=torch.tensor([[0, 5, 2]]), labels=torch.tensor([1])).loss.backward()
    refuse_unconnected(prepared)
    # One of the two matrices has a gradient of zeros in the first step.
    still = without_gradient(prepared)
    assert len(still) == 4
    assert all("lora_A" in name for name in still)
    with pytest.warns(UserWarning, match="no gradient in 3 steps: base_model.*lora_A"):
        refuse_still(prepared, still, steps=3)
    with pytest.raises(TrainingError, match="no parameter of group '.*' has a gradient, base_model.*lora"):
        refuse_still(prepared, {name for name, _ in prepared.model.named_parameters() if "lora" in name})


def test_trained_numbers_are_loaded_into_the_same_parameters(base, tmp_path):
    first, second = _prepared(base), _prepared(base)
    for parameter in first.model.parameters():
        parameter.data += parameter.requires_grad
    save_trained(first, tmp_path)
    load_trained(second, tmp_path)
    values = dict(second.model.named_parameters())
    for name, parameter in first.model.named_parameters():
        assert not parameter.requires_grad or torch.equal(parameter, values[name])
    second.model.requires_grad_(False)
    with pytest.raises(RunDirectoryError, match=r"trained.safetensors: base_model.* has shape .*; accepted: None"):
        load_trained(second, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["quarry"]}, "target_modules|quarry"),
        ({"max_length": 39}, "max_length is 39; accepted by the model: 1 to 38"),
        ({"eval_delay": 100}, "there was no evaluation; accepted: more steps, or a smaller eval_steps or eval_delay"),
        ({"lr_scheduler_type": "linaer"}, "'?linaer"),
        ({"optim_args": "bad"}, "transformers refuses the training options: not enough values to unpack"),
        ({"lr_scheduler_kwargs": {"a": 1}}, "transformers refuses the training options: .* unexpected keyword .* 'a'"),
        ({"log_level": "loud"}, "transformers refuses the training options: 'loud'"),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 2**20},
            "dataloader_drop_last is True, and .* rows are less than a batch of 1048576; accepted: smaller",
        ),
    ],
)
def test_what_shows_only_with_the_model(base, tmp_path, options, message):
    with pytest.raises(OptionError, match=message) as raised:
        run(base, tmp_path, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_reports_that_are_not_installed_and_seeds_that_are_none(base, tmp_path):
    with pytest.raises(OptionError, match="report_to is 'mlflow'; accepted: none, tensorboard, wandb, trackio"):
        run_recipe(load_recipe("glue"), tmp_path, choice(base), tasks=["sst2"], seeds=[0], report_to="mlflow")
    with pytest.raises(OptionError, match="seed is 4294967296; accepted: 0 to 4294967295"):
        run(base, tmp_path, seeds=[2**32])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system counts from the start alone")
def test_memory_is_counted_from_the_start_of_a_run():
    block = torch.ones(2**26)  # 256 MiB
    reset_peak_memory()
    before = peak_memory()
    del block
    reset_peak_memory()
    after = peak_memory()
    assert after < before - 200 * 2**20
    block = torch.ones(2**26)
    assert peak_memory() > after + 200 * 2**20
    del block
