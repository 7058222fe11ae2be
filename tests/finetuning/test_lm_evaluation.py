"""Tasks of lm-eval at the end of a run: what they measure, and what is said before training where they cannot run."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny_language_models import COLORS, THINGS, save_instructions, save_llama
from tiny_text_models import offline
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowrank_ldu.errors import MissingExtraError, OptionError
from lowrank_ldu.finetuning import (
    Choice,
    compare_methods,
    figures_frame,
    load_recipe,
    plan_comparison,
    run_recipe,
    select_entries,
    write_comparison,
)
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.run_directory import NOT_EVALUATED
from lowrank_ldu.finetuning.tasks import lm_evaluation, lm_tasks
from lowrank_ldu.finetuning.tasks.instructions import TEMPLATES
from lowrank_ldu.finetuning.tasks.lm_evaluation import OPTIONS, LmEvaluations, check_lm_options
from lowrank_ldu.finetuning.tasks.lm_tasks import unsafe_tasks

pytest.importorskip("lm_eval")
QUESTIONS = [
    (TEMPLATES["alpaca"].prompt(instruction, given), place)
    for place, thing in enumerate(THINGS)
    for instruction, given in (
        ("name the color", f"a {thing}"),
        ("name the color of", thing),
        (f"a {thing} is", ""),
    )
]


_offline = pytest.fixture(offline, scope="module", autouse=True)


def task_file(folder, name, **more):
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(folder / "questions.jsonl") for split in ("test", "dev")}},
        "test_split": "test",
        "fewshot_split": "dev",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": list(COLORS),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **more,
    }
    (folder / "tasks").mkdir(exist_ok=True)
    # YAML has all of JSON.
    (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    # It asks pip and the compiler for their versions, which takes longer than the rest.
    patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    save_llama(folder / "llama")
    save_instructions(folder / "rows.json", 40)
    lines = [json.dumps({"question": question, "answer": place}) for question, place in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    task_file(folder, "colors", target_delimiter=" ")
    task_file(
        folder,
        "written",
        output_type="generate_until",
        generation_kwargs={"until": ["</s>"], "max_gen_toks": 1},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    task_file(folder, "colors_unsafe", unsafe_code=True)
    task_file(folder, "colors_lost", dataset_kwargs={"data_files": {"test": str(folder / "none.jsonl")}})
    yield folder
    patch.undo()


def choice(base, names, **settings):
    own = {"lm_eval_tasks": names, "lm_eval_include_path": str(base / "tasks"), "r": 4, "lora_alpha": 8}
    tiny = {"validation_rows": 8, "max_length": 64, "bf16": False, "dtype": "float32", "learning_rate": 2e-2}
    few = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_train_epochs": 4}
    settings = {**own, **tiny, **few, **settings}
    return Choice(method="lora", model=str(base / "llama"), data=str(base / "rows.json"), settings=settings)


def run(base, out, names, tests=True, **settings):
    return run_recipe(load_recipe("instruct"), out, choice(base, names, **settings), seeds=[0], tests=tests)[0]


def correct(base, result):
    """Whether the adapter, loaded by PEFT alone, finds the right color the most probable one, and the next word."""
    model = AutoModelForCausalLM.from_pretrained(base / "llama", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, result.folder / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(base / "llama")
    places = tokenizer.convert_tokens_to_ids(list(COLORS))
    found = []
    for question, place in QUESTIONS:
        with torch.no_grad():
            logits = model(**tokenizer(question, return_tensors="pt")).logits[0, -1]
        found.append((int(logits[places].argmax()) == place, int(logits.argmax()) == places[place]))
    return [sum(each) / len(QUESTIONS) for each in zip(*found, strict=True)]


def test_tasks_are_run_once_when_training_is_over(base, tmp_path):
    names = ["colors", "written"]
    first = run(base, tmp_path, names, tests=False)
    assert set(first.metrics) == {"validation"}
    assert first.record[NOT_EVALUATED] == names
    # A later call adds them.
    result = run(base, tmp_path, names)
    chosen, written = correct(base, result)
    assert written > 0
    assert result.metrics["colors"]["acc"] == pytest.approx(chosen)
    assert result.metrics["written"]["exact_match"] == pytest.approx(written)
    assert set(result.metrics["colors"]) == {"acc", "acc_stderr"}
    assert result.metrics["validation"] == first.metrics["validation"]
    # What is in the folder is read.
    assert run(base, tmp_path, names).record == result.record


def evaluated(base, **options):
    tokenizer = AutoTokenizer.from_pretrained(base / "llama")
    model = AutoModelForCausalLM.from_pretrained(base / "llama", dtype=torch.float32)
    seen, forward = [], model.forward

    def counted(input_ids, **named):
        seen.append(tuple(input_ids.shape))
        return forward(input_ids, **named)

    model.forward = counted
    given = {**OPTIONS, "lm_eval_tasks": ["colors"], "lm_eval_include_path": str(base / "tasks"), **options}
    before = (tokenizer.pad_token, tokenizer.padding_side)
    metrics = LmEvaluations(given, tokenizer, 4).functions["colors"](model)
    assert (tokenizer.pad_token, tokenizer.padding_side) == before
    return metrics, seen


def test_the_number_of_questions_and_of_examples_before_each(base):
    _, plain = evaluated(base)
    _, few = evaluated(base, lm_eval_limit=2)
    assert sum(rows for rows, _ in few) < sum(rows for rows, _ in plain)
    assert max(rows for rows, _ in plain) <= 4
    # A model of 128 positions has room for one example before a question.
    _, shot = evaluated(base, lm_eval_num_fewshot=1)
    _, table = evaluated(base, lm_eval_num_fewshot={"colors": 1})
    assert max(length for _, length in shot) > 1.7 * max(length for _, length in plain)
    assert shot == table


def refused(base, names, **options):
    given = {**OPTIONS, "lm_eval_tasks": names, "lm_eval_include_path": str(base / "tasks"), **options}
    check_lm_options(given)
    with pytest.raises(OptionError) as raised:
        LmEvaluations(given, AutoTokenizer.from_pretrained(base / "llama"), 4).load()
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_code_that_a_model_writes_is_run_only_where_that_is_allowed_twice(base, monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    message = (
        "lm_eval_tasks has 'colors_unsafe', which runs code that the model writes, on this machine; accepted: "
        "lm_eval_run_unsafe_code=true with HF_ALLOW_CODE_EVAL=1 in the environment, or lm_eval_tasks without it"
    )
    assert refused(base, ["colors_unsafe"]) == message
    assert refused(base, ["colors_unsafe"], lm_eval_run_unsafe_code=True) == message
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert refused(base, ["colors_unsafe"]) == message
    allowed = {"lm_eval_tasks": ["colors_unsafe"], "lm_eval_include_path": str(base / "tasks")}
    evaluations = LmEvaluations(
        {**OPTIONS, **allowed, "lm_eval_run_unsafe_code": True, "lm_eval_limit": 1},
        AutoTokenizer.from_pretrained(base / "llama"),
        4,
    )
    model = AutoModelForCausalLM.from_pretrained(base / "llama")
    assert "acc" in evaluations.functions["colors_unsafe"](model)


def test_tasks_that_cannot_be_run_are_told_before_training(base, tmp_path, monkeypatch):
    assert "lm_eval_tasks has 'colors_lost', which lm-eval cannot load (FileNotFoundError" in refused(
        base, ["colors_lost"]
    )
    assert "and no folder; accepted: a folder of lm-eval's YAML files" in refused(
        base, ["colors"], lm_eval_include_path=str(base / "none")
    )
    # lm-eval's own tasks are looked at, too, where a name is not in the folder; they take long to read.
    from lm_eval import tasks

    own = tasks.TaskManager(include_path=str(base / "tasks"), include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", lambda **_: own)
    assert refused(base, ["color"]).startswith("lm_eval_tasks has 'color'; accepted: colors")
    with pytest.raises(OptionError, match="lm_eval_tasks has 'color'; accepted: colors"):
        run(base, tmp_path, ["color"])
    assert not list(tmp_path.rglob("checkpoint*"))


def test_what_is_not_reported_loads_no_task(base, tmp_path, monkeypatch):
    loaded = []

    def load(manager, name, options):
        loaded.append(name)
        return load_task(manager, name, options)

    load_task = lm_evaluation._load_task
    monkeypatch.setattr(lm_evaluation, "_load_task", load)
    # Of a trial the names are checked, and the data need not be there.
    names = ["colors", "colors_lost"]
    result = run(base, tmp_path, names, tests=False, max_steps=1)
    assert result.record[NOT_EVALUATED] == names
    assert loaded == []
    with pytest.raises(OptionError, match="lm_eval_tasks has 'colors_lost', which lm-eval cannot load"):
        run(base, tmp_path / "reported", names)
    assert loaded == names
    assert not list((tmp_path / "reported").rglob("checkpoint-*"))
    with pytest.raises(OptionError, match="lm_eval_tasks has 'colors_unsafe', which runs code"):
        run(base, tmp_path / "unsafe", ["colors_unsafe"], tests=False)


@pytest.mark.longer
def test_a_comparison_evaluates_what_it_reports(base, tmp_path, monkeypatch):
    evaluated = []

    def evaluate(self, name, model):
        evaluated.append(name)
        return evaluate_task(self, name, model)

    evaluate_task = LmEvaluations._evaluate
    monkeypatch.setattr(LmEvaluations, "_evaluate", evaluate)
    given = choice(base, ["colors", "written"], max_steps=2)
    settings = {name: value for name, value in given.settings.items() if name not in {"r", "lora_alpha"}}
    entries = {
        "lora": {"method": "lora", "r": 4, "lora_alpha": 8, "paper": {"alpaca": {"colors": 61.2}}},
        "loldu": {"method": "loldu", "r": 8, "alpha": 8},
    }
    recipe = load_recipe("instruct")
    table = {"metrics": {"colors": "colors/acc", "written": "written", "drop": "drop/em"}, "entries": entries}
    recipe = replace(recipe, table={**recipe.table, "comparisons": {"tiny": table}})
    chosen = Choice(model=given.model, data=given.data, settings=settings)
    plan = plan_comparison(recipe, tmp_path, select_entries(recipe), chosen, trials=2, seeds=2)
    trained = compare_methods(plan)
    # Two entries with two seeds, and none of the four trials.
    assert evaluated == 4 * ["colors", "written"]
    methods = write_comparison(plan, trained)
    figures = figures_frame(plan, trained, methods).set_index(["entry", "figure"])
    finals = [each for each in trained if not each.trial and each.entry.name == "lora"]
    means = [
        sum(each.result.metrics[name][key] for each in finals) / 2
        for name, key in (("colors", "acc"), ("written", "exact_match"))
    ]
    assert figures.loc["lora"]["mean"][["colors", "written"]].tolist() == pytest.approx(means)
    assert figures.loc[("lora", "colors"), "paper"] == 61.2
    assert figures.loc[("loldu", "drop"), "missing"] == "the run has no drop; it has validation, colors, written"
    assert "| colors | LoRA | " in (tmp_path / "table.md").read_text()


def test_names_of_lm_evals_own_tasks_are_found_without_parsing_all(monkeypatch):
    def refuse(*_):
        raise AssertionError("all tasks are parsed")

    monkeypatch.setattr(lm_tasks, "_whole", refuse)
    names = load_recipe("instruct").table["lm_eval_tasks"]
    assert unsafe_tasks(names, None) == {"humaneval"}
    with pytest.raises(AssertionError, match="all tasks are parsed"):
        unsafe_tasks(["mmlux"], None)


def test_a_group_is_as_unsafe_as_its_members(base, tmp_path):
    for name in ("colors_plain", "colors_unsafe"):
        content = json.loads((base / "tasks" / "colors.yaml").read_text())
        content |= {"task": name, "unsafe_code": name == "colors_unsafe"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
    group = {"group": "colors_group", "task": ["colors_plain", {"task": "colors_unsafe", "num_fewshot": 1}]}
    (tmp_path / "group.yaml").write_text(json.dumps(group))
    assert unsafe_tasks(["colors_group", "colors_plain"], str(tmp_path)) == {"colors_group"}


def test_without_the_library_the_extra_is_named_before_training(base, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(
        MissingExtraError, match=r"pip install 'lowrank-ldu\[lm-eval\]', or lm_eval_tasks=\[\], which leaves it out"
    ):
        run(base, tmp_path, ["colors"])
    assert not list(tmp_path.rglob("checkpoint*"))
    assert set(run(base, tmp_path / "without", [], max_steps=1).metrics) == {"validation"}


@pytest.mark.longer
def test_of_two_processes_the_first_evaluates(base, tmp_path):
    given = choice(base, ["colors"], max_steps=2)
    words = ["finetune", "instruct", "--model", given.model, "--data", given.data, "--method", "lora", "--seed", "0"]
    for name, value in given.settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "lowrank_ldu", *words, "--out", "out"]
    cache = {"HF_DATASETS_CACHE": str(base / "cache")}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **more, **cache}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    # lm-eval says so whenever it is given a model.
    assert done.stderr.count("`pretrained` model kwarg is not of type `str`") == 1
    record = json.loads((tmp_path / "out" / "alpaca" / "seed-0" / "metrics.json").read_bytes())
    assert set(record["metrics"]["colors"]) == {"acc", "acc_stderr"}


@pytest.mark.longer
def test_tasks_of_the_recipe_are_lm_evals_own():
    from lm_eval.tasks import TaskManager

    config = configure(load_recipe("instruct"), "alpaca", Choice(), seed=42)
    assert set(config.task_options["lm_eval_tasks"]) <= set(TaskManager().all_tasks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm_eval_tasks": "mmlu"}, r"lm_eval_tasks is 'mmlu'; accepted: a list of names of lm-eval's tasks, \[\] for"),
        ({"lm_eval_tasks": ["mmlu", "mmlu"]}, "accepted: each name once, and none is 'validation'"),
        ({"lm_eval_tasks": ["validation"]}, "accepted: each name once, and none is 'validation'"),
        ({"lm_eval_limit": 0}, "lm_eval_limit is 0; accepted: an integer from 1 on"),
        ({"lm_eval_num_fewshot": -1}, "lm_eval_num_fewshot is -1; accepted: an integer from 0 on, or a table of tasks"),
        ({"lm_eval_num_fewshot": {"mmlu": True}}, "lm_eval_num_fewshot is {'mmlu': True}; accepted"),
        ({"lm_eval_num_fewshot": {"mlmu": 5}}, "lm_eval_num_fewshot has 'mlmu'; accepted: mmlu, drop, bbh, humaneval"),
        ({"lm_eval_include_path": 3}, "lm_eval_include_path is 3; accepted: a folder of lm-eval's YAML files"),
        ({"lm_eval_run_unsafe_code": "yes"}, "lm_eval_run_unsafe_code is 'yes'; accepted: true, false"),
    ],
)
def test_options_of_evaluation_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        configure(load_recipe("instruct"), "alpaca", Choice(settings=options), seed=0)
