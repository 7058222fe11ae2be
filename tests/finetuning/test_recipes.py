"""Recipes: what ships, how tables are put together, and what is refused."""

import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest

from lowrank_ldu.errors import OptionError
from lowrank_ldu.finetuning import METHODS, Choice, list_recipes, load_recipe
from lowrank_ldu.finetuning.comparison import select_entries
from lowrank_ldu.finetuning.comparison.trials import chosen_by
from lowrank_ldu.finetuning.configuration import configure, differences
from lowrank_ldu.finetuning.recipe import parse_setting, resolve
from lowrank_ldu.finetuning.tasks.image_tasks import IMAGE_TASKS

# arXiv 2410.13618, Table VII: learning rate, epochs, length.
TABLE_7 = {
    "mnli": (3e-4, 10, 128),
    "sst2": (4e-4, 10, 128),
    "mrpc": (3e-4, 20, 512),
    "cola": (2e-4, 20, 128),
    "qnli": (2e-4, 10, 512),
    "qqp": (3e-4, 20, 512),
    "rte": (4e-4, 20, 512),
    "stsb": (2e-4, 30, 512),
}


def configured(recipe="glue", task=None, seed=0, **choice):
    loaded = load_recipe(recipe)
    return configure(loaded, task or loaded.tasks[0], Choice(**choice), seed=seed)


def test_glue_has_the_figures_of_the_paper():
    assert set(load_recipe("glue").tasks) == set(TABLE_7)
    for task, (rate, epochs, length) in TABLE_7.items():
        config = configured(task=task)
        assert (config.training["learning_rate"], config.training["num_train_epochs"]) == (rate, epochs)
        assert config.task_options["max_length"] == length
        assert config.training["per_device_train_batch_size"] == 32
        assert config.training["warmup_ratio"] == 0.06
        assert (config.method, config.method_options["r"], config.method_options["alpha"]) == ("loldu", 768, 768)
    assert len(load_recipe("glue").seeds) == 5


def test_image_classification_has_the_figures_of_the_paper():
    # arXiv 2410.13618, Table IX; labels of the sets.
    labels = {
        "cifar10": 10,
        "cifar100": 100,
        "eurosat": 10,
        "stanford_cars": 196,
        "flowers102": 102,
        "fgvc_aircraft": 100,
    }
    recipe = load_recipe("image-classification")
    assert (recipe.seeds, set(recipe.tasks)) == ((42,), set(labels))
    for task, count in labels.items():
        config = configured("image-classification", task)
        assert IMAGE_TASKS[task].labels == count
        names = (
            "learning_rate",
            "num_train_epochs",
            "per_device_train_batch_size",
            "warmup_steps",
            "lr_scheduler_type",
        )
        assert [config.training[name] for name in names] == [3e-3, 10, 128, 30, "linear"]
        assert config.training["bf16"] is True
        assert (config.method, config.method_options["r"], config.method_options["alpha"]) == ("loldu", 768, 768)
        smaller = configured("image-classification", task, variant="rank64")
        assert (smaller.method_options["r"], smaller.method_options["alpha"]) == (64, 64)
    # As the layers are named before and after transformers 5.
    pattern = re.compile(configured("image-classification").target_modules)
    for attention, names in (
        ("vit.encoder.layer.0.attention.attention", ("query", "value")),
        ("vit.layers.0", ("q_proj", "v_proj")),
    ):
        assert all(pattern.fullmatch(f"{attention}.{name}") for name in names)
    assert not any(
        map(pattern.fullmatch, ("vit.layers.0.k_proj", "vit.encoder.layer.0.attention.attention.key", "classifier"))
    )


def test_text_to_image_has_the_figures_of_the_paper():
    figures = {
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 1,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 15,
        "max_steps": 1000,
        "weight_decay": 0.01,
        "fp16": True,
    }
    for method, rank in {"loldu": {"r": 32, "alpha": 32}, "lora": {"r": 32, "lora_alpha": 32}}.items():
        config = configured("text-to-image", method=method)
        assert config.target_modules == ["to_q", "to_k", "to_v", "to_out.0"]
        assert config.training.items() >= figures.items()
        assert config.method_options.items() >= rank.items()
        assert (config.task_options["resolution"], config.task_options["vae"]) == (512, "stabilityai/sd-vae-ft-mse")
    assert load_recipe("text-to-image").seeds == (42,)


def test_what_the_paper_says_twice_is_two_variants():
    assert configured().target_modules == configured(variant="table7").target_modules == ["query", "value"]
    assert configured(variant="section4a").target_modules == ["query", "key", "value", "attention.output.dense"]


@pytest.mark.parametrize("name", list_recipes())
def test_every_task_and_variant_that_ships_is_configured(name):
    recipe = load_recipe(name)
    assert tomllib.loads(recipe.text) == recipe.table
    for task in recipe.tasks:
        for variant in recipe.variants or [None]:
            config = configured(name, task, variant=variant)
            assert not differences(config.as_dict(), config.as_dict())


def test_later_tables_replace_earlier_ones(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        """
        title = "t"
        kind = "text-classification"
        model = "m"
        method = "lora"
        seeds = [1]
        learning_rate = 1.0
        weight_decay = 0.1
        [tasks.sst2]
        learning_rate = 2.0
        methods.lora.r = 3
        [methods.lora]
        learning_rate = 3.0
        r = 2
        [variants.a]
        learning_rate = 4.0
        methods.lora.r = 4
        [variants.b]
        method = "loldu"
        """,
        encoding="utf-8",
    )
    plain, a, b = (configured(path, variant=variant) for variant in (None, "a", "b"))
    assert (plain.training["learning_rate"], plain.method_options["r"], plain.data) == (3.0, 3, None)
    assert (a.training["learning_rate"], a.method_options["r"]) == (4.0, 4)
    assert (b.training["learning_rate"], b.method) == (2.0, "loldu")
    own = configured(path, variant="a", settings={"learning_rate": 5, "r": 6}, model="n", data="d")
    assert (own.training["learning_rate"], own.method_options["r"], own.model, own.data) == (5.0, 6, "n", "d")
    assert own.training["weight_decay"] == 0.1


def test_what_is_set_takes_the_place_of_what_says_the_same_in_another_way():
    def training(recipe, settings):
        return configured(recipe, settings=settings).training

    steps = training("glue", {"warmup_steps": 5})
    assert (steps["warmup_steps"], steps.keys() & {"warmup_ratio"}) == (5, set())
    ratio = training("image-classification", {"warmup_ratio": 0.1})
    assert (ratio["warmup_ratio"], ratio.keys() & {"warmup_steps"}) == (0.1, set())
    # The number of steps would outdo that of epochs.
    epochs = training("text-to-image", {"num_train_epochs": 2})
    assert (epochs["num_train_epochs"], epochs.keys() & {"max_steps"}) == (2, set())
    assert training("glue", {"max_steps": 7}).items() >= {"max_steps": 7, "num_train_epochs": 10}.items()
    assert "eval_steps" not in training("text-to-image", {"eval_strategy": "epoch"})
    assert training("text-to-image", {"eval_steps": 5})["eval_steps"] == 5
    # Of a comparison, its entry and the user the last one counts.
    recipe = load_recipe("glue")
    entry = replace(select_entries(recipe, ["lora"]).entries[0], settings={"warmup_ratio": 0.2})
    assert chosen_by(entry, Choice(settings={"warmup_steps": 5})).settings == {"warmup_steps": 5}


def test_options_are_listed_in_one_order():
    config = configured("text-to-image")
    defaults = ["eval_strategy", "logging_steps", "save_total_limit"]
    own = [name for name in config.training if name not in defaults]
    assert list(config.training) == [*defaults, *sorted(own)]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"settings": {"lerning_rate": 1e-3}}, "lerning_rate is no option of recipe glue; accepted: learning_rate"),
        ({"settings": {"max_lenght": 5}}, "max_lenght is no option of recipe glue; accepted: max_length"),
        ({"settings": {"lora_alpha": 8}}, "lora_alpha.* is no option of .*loldu"),
        ({"method": "lora", "settings": {"pivoting": "rook"}}, "pivoting.* is no option of .*lora"),
        ({"method": "lorra"}, "method is 'lorra'; accepted: lora"),
        ({"variant": "table8"}, "variant is 'table8'; accepted: table7"),
        ({"settings": {"model": "x"}}, "setting model has an option of its own; accepted: --model"),
        ({"settings": {"seed": 1}}, "seed is set by the run itself; accepted: --seed"),
        ({"settings": {"output_dir": "x"}}, "output_dir is set by the run itself; accepted: --out"),
        ({"settings": {"push_to_hub": True}}, "push_to_hub is set by the run itself"),
        ({"settings": {"learning_rate": "fast"}}, "learning_rate is 'fast'"),
        ({"settings": {"learning_rate": -1.0}}, "learning_rate is -1.0; accepted: a positive finite number"),
        ({"settings": {"num_train_epochs": True}}, "num_train_epochs is True"),
        ({"settings": {"per_device_train_batch_size": 0}}, "per_device_train_batch_size is 0; accepted: from 1 on"),
        ({"settings": {"warmup_ratio": 1.5}}, "warmup_ratio is 1.5; accepted: from 0 to 1"),
        (
            {"settings": {"warmup_ratio": 0.1, "warmup_steps": 5}},
            "warmup_ratio and warmup_steps are given; accepted: one of them",
        ),
        ({"settings": {"eval_do_concat_batches": False}}, "eval_do_concat_batches is set by the run itself; accepted:"),
        ({"settings": {"batch_eval_metrics": True}}, "batch_eval_metrics is set by the run itself; accepted: leave it"),
        ({"settings": {"include_for_metrics": ["inputs"]}}, "include_for_metrics is set by the run itself; accepted:"),
        ({"settings": {"optim_target_modules": ["query"]}}, "optim_target_modules is set by the run itself; accepted:"),
        ({"settings": {"max_grad_norm": math.nan}}, "max_grad_norm is nan; accepted: a finite number from 0 on"),
        ({"settings": {"weight_decay": math.nan}}, "weight_decay is nan; accepted: a finite number from 0 on"),
        ({"settings": {"label_smoothing_factor": 7}}, "label_smoothing_factor is 7.0; accepted: from 0 to below 1"),
        ({"settings": {"debug": "underflow_overflow"}}, "debug is set by the run itself; accepted: leave it out"),
        (
            {"settings": {"train_sampling_strategy": "x"}},
            "train_sampling_strategy is 'x'; accepted: random, seq",
        ),
        ({"settings": {"dataloader_multiprocessing_context": "fork"}}, "accepted: with dataloader_num_workers"),
        ({"settings": {"adam_beta1": 1.0}}, "adam_beta1 is 1.0; accepted: from 0 to below 1"),
        ({"seed": 2**32}, "seed is 4294967296; accepted: 0 to 4294967295"),
        ({"seed": -1}, "seed is -1; accepted: 0 to 4294967295"),
        ({"settings": {"eval_strategy": "never"}}, "eval_strategy is 'never'; accepted: epoch, steps, no"),
        ({"settings": {"eval_strategy": "steps"}}, "eval_steps and eval_strategy = 'steps' belong together"),
        ({"settings": {"max_length": 1.5}}, "max_length is 1.5; accepted: an integer from 1 on"),
        ({"settings": {"head_learning_rate": 0}}, "head_learning_rate is 0; accepted: a positive finite number"),
        ({"settings": {"target_modules": 3}}, "target_modules is 3; accepted: a list of names of modules"),
    ],
)
def test_settings_that_cannot_be(choice, message):
    with pytest.raises(OptionError, match=message) as raised:
        configured(**choice)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "own.toml: is not TOML"),
        ('title = "t"', "own.toml: has no kind; accepted: a recipe with title, kind"),
        ('title = 3\nkind = "k"\nmodel = "m"\nmethod = "lora"', "title is 3; accepted: a string"),
        ('title = "t"\nkind = "k"\nmodel = "m"\nmethod = "lora"', "seeds is None; accepted: a list of different"),
        ('title = "t"\nkind = "k"\nmodel = "m"\nmethod = "lora"\nseeds = [1]', r"has no \[tasks.NAME\]"),
        (
            'title = "t"\nkind = "k"\nmodel = "m"\nmethod = "lora"\nseeds = [1]\ntasks.a.b = 1\nvariants = 3',
            r"variants is 3; accepted: tables \[variants.NAME\]",
        ),
        (
            'title = "t"\nkind = "k"\nmodel = "m"\nmethod = "lora"\nseeds = [1]\ntasks.a.b = 1',
            "kind is 'k'; accepted: text-classification",
        ),
        (
            'title = "t"\nkind = "text-classification"\nmodel = "m"\nmethod = "lora"\nseeds = [1]\ntasks.sst3.r = 1',
            "task 'sst3' is no text-classification task; accepted: sst2",
        ),
    ],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        configured(path)


def test_recipes_and_tasks_that_are_not_there(tmp_path):
    with pytest.raises(OptionError, match="recipe is 'gleu'; accepted: glue, or a .toml file"):
        load_recipe("gleu")
    with pytest.raises(OptionError, match=r"none.toml: cannot be read \(No such file or directory\)"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(OptionError, match="task is 'sts-b'; accepted: stsb"):
        resolve(load_recipe("glue"), "sts-b", Choice())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r=8", ("r", 8)),
        ("target_modules = ['query', 'value']", ("target_modules", ["query", "value"])),
        ("bf16=true", ("bf16", True)),
        ("optim=adamw_torch", ("optim", "adamw_torch")),
    ],
)
def test_settings_are_written_as_in_toml(text, expected):
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["r", "r=", "=8"])
def test_settings_without_a_key_or_a_value(text):
    with pytest.raises(OptionError, match="accepted: KEY=VALUE, such as learning_rate=1e-3"):
        parse_setting(text)


def test_differences_are_named_in_both_directions():
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"d": 3}}) == [
        "b.c was 2 and is not there",
        "b.d was not there and is 3",
    ]
    # A later version's option, which nobody has set; one that an earlier version's run had set.
    assert not differences({"a": 1}, {"a": 1, "b": None})
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": None}) == ["b was 2 and is None"]


@pytest.mark.parametrize("method", ["full", "head", "bitfit"])
def test_targets_of_a_method_that_adapts_no_layers_are_refused(method):
    # The recipe's own are for other methods.
    assert configured(method=method).target_modules is None
    with pytest.raises(OptionError, match=rf"target_modules is \['key'\] with method '{method}', which adapts no lay"):
        configured(method=method, settings={"target_modules": ["key"]})


def test_every_form_of_ldu_has_its_own_rate_for_sentiment():
    rates = {name: configured("sentiment", method=name).training["learning_rate"] for name in ("loldu", "ldu-basis")}
    assert rates == {"loldu": 3e-3, "ldu-basis": 2e-2}


def test_methods_are_listed_without_peft(tmp_path):
    """It takes seconds to import."""
    script = "import sys; from lowrank_ldu.cli.app import app; app(['finetune', '--list'], standalone_mode=False)"
    found = subprocess.run(
        [sys.executable, "-c", f"{script}; print(sorted({{'peft', 'transformers'}} & sys.modules.keys()))"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *listed, imported = found.stdout.splitlines()
    assert imported == "[]"
    lines = {line.strip() for line in listed}
    assert {f"{name}: {method.title}" for name, method in METHODS.items() if method.unavailable() is None} <= lines
