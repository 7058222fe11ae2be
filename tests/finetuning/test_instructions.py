"""Instructions: where they come from, their tokens and labels one by one, and what is said of those that do not fit."""

import dataclasses
import json
import math

import datasets
import pytest
import torch
from tiny_language_models import PROMPT, instructions, save_instructions, save_llama
from tiny_text_models import offline
from transformers import AutoTokenizer
from transformers.loss.loss_utils import ForCausalLMLoss

from lowrank_ldu.errors import OptionError, TrainingError
from lowrank_ldu.finetuning import Choice, load_recipe
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.tasks import get_kind
from lowrank_ldu.finetuning.tasks.answers import answer_losses, answer_metrics, answer_tokens
from lowrank_ldu.finetuning.tasks.instructions import TEMPLATES, open_instructions

ALPACA = TEMPLATES["alpaca"]
SETTINGS = {"validation_rows": 4, "lm_eval_tasks": [], "max_length": 64, "bf16": False, "dtype": "float32"}


_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


def config_of(model, data, **settings):
    choice = Choice(model=str(model), data=data and str(data), settings={**SETTINGS, **settings})
    return configure(load_recipe("instruct"), "alpaca", choice, seed=0)


def loaded(model, data, **settings):
    config = config_of(model, data, **settings)
    return get_kind(config.kind).load(config)


def text_of(model, ids):
    return AutoTokenizer.from_pretrained(model).convert_ids_to_tokens(ids)


def test_prompts_are_those_of_alpaca():
    assert ALPACA.prompt("Add {them}.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd {them}.\n\n### Response:\n"
    )
    assert ALPACA.prompt("Add them.", "1 and {2}") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd them.\n\n### Input:\n1 and {2}\n\n"
        "### Response:\n"
    )


def test_every_token_of_an_answer_has_a_label_and_no_other(model, tmp_path):
    rows = [
        {"instruction": "name the color", "input": "a rose", "output": "red"},
        {"instruction": "what is the color of the sky", "input": None, "output": "it is blue"},
        {"instruction": "name the color", "input": "", "output": ""},
        {"instruction": "name the color", "input": "", "output": "green"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = loaded(model, tmp_path / "rows.json", validation_rows=1, max_length=100)
    made = {tuple(row["labels"]): row for split in (task.train, task.validation) for row in split}
    answers = {
        " ".join(text_of(model, [label for label in labels if label != -100])): row for labels, row in made.items()
    }
    assert set(answers) == {"red </s>", "it is blue </s>", "</s>", "green </s>"}
    ids, labels = (answers["it is blue </s>"][name] for name in ("input_ids", "labels"))
    assert " ".join(text_of(model, ids)) == (
        "<s> Below is an instruction that describes a task . Write a response that appropriately completes the request "
        ". ### Instruction : what is the color of the sky ### Response : it is blue </s>"
    )
    assert labels == [-100] * (len(ids) - 4) + ids[-4:]
    with_input = answers["red </s>"]["input_ids"]
    assert " ".join(text_of(model, with_input)).endswith("Input : a rose ### Response : red </s>")
    assert with_input.count(with_input[0]) == 1
    # Filled up on the right, without labels and without attention.
    batch = task.collator([answers["it is blue </s>"], answers["red </s>"]])
    short, length = (0, len(ids)) if len(ids) < len(with_input) else (1, len(with_input))
    assert batch["labels"].dtype == torch.int64
    assert (batch["labels"][short, length:] == -100).all()
    assert batch["attention_mask"][short].sum() == length < batch["labels"].shape[1]


def byte_level():
    """A tokenizer of bytes and of merges, one of which joins the end of a prompt with an answer's first character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    places = {letter: place for place, letter in enumerate(["<end>", *letters, "ĊA"])}
    tokenizer = Tokenizer(models.BPE(places, [("Ċ", "A")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")  # noqa: S106


def test_a_token_across_the_end_of_a_prompt_and_one_of_several_bytes():
    tokenizer = byte_level()
    rows = datasets.Dataset.from_list([{"instruction": "x", "input": "", "output": each} for each in ("A é", "B")])
    made = answer_tokens(rows, tokenizer, ALPACA, 500, "train")
    labels = [[label for label in row["labels"] if label != -100] for row in made]
    # It has the answer's first character, so that it is learned; é has two tokens of one byte.
    assert tokenizer.convert_ids_to_tokens(labels[0]) == ["ĊA", "Ġ", "Ã", "©", "<end>"]
    assert tokenizer.convert_ids_to_tokens(labels[1]) == ["B", "<end>"]
    assert tokenizer.decode(made[0]["input_ids"]) == ALPACA.prompt("x", "") + "A é<end>"


def test_an_end_that_the_tokenizer_adds_is_there_once(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(save_llama(tmp_path))
    ends = [("<s>", 0), ("</s>", 1)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=ends)
    rows = datasets.Dataset.from_list(instructions(2))
    for row in answer_tokens(rows, tokenizer, ALPACA, 100, "train"):
        assert row["input_ids"][-1] == row["labels"][-1] == 1
        assert row["input_ids"].count(1) == 1


def test_answers_that_are_cut_off_whole_are_left_out_and_counted(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = datasets.Dataset.from_list(
        [{"instruction": "name " * number, "input": "", "output": "red green blue"} for number in (1, 2, 3, 4, 5)]
    )
    shortest = len(tokenizer(ALPACA.prompt("name ", ""))["input_ids"])
    with pytest.warns(
        UserWarning, match=f"2 of 5 rows of split 'train' are left out: .*max_length, {shortest + 3} tok"
    ):
        made = answer_tokens(rows, tokenizer, ALPACA, shortest + 3, "train")
    # What is left of an answer is learned; its end is, where it is left.
    assert [[label for label in row["labels"] if label != -100] for row in made] == [
        tokenizer.convert_tokens_to_ids(words) for words in (["red", "green", "blue"], ["red", "green"], ["red"])
    ]
    assert {len(row["input_ids"]) for row in made} == {shortest + 3}
    with pytest.raises(OptionError, match="max_length is 9, and no answer of split 'train' begins before it; accepted"):
        answer_tokens(rows, tokenizer, ALPACA, 9, "train")


def test_files_and_folders_give_the_same_rows(tmp_path):
    rows = instructions(12)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(tmp_path / "splits")
    found = [
        open_instructions(str(tmp_path / name), validation_rows=5) for name in ("a.json", "a.jsonl", "one", "splits")
    ]
    for each in found:
        assert (len(each["train"]), len(each["validation"])) == (7, 5)
        assert all(each[split][:] == found[0][split][:] for split in each)
    together = [row for split in found[0].values() for row in split]
    assert sorted(map(str, together)) == sorted(map(str, rows))


def test_a_validation_split_is_kept_and_parts_are_the_same_in_each_call(tmp_path):
    rows, others = (datasets.Dataset.from_list(instructions(9, seed)) for seed in (1, 2))
    datasets.DatasetDict(train=rows, validation=others, test=others).save_to_disk(tmp_path)
    first, again = (open_instructions(str(tmp_path), validation_rows=4, train_rows=6) for _ in range(2))
    assert (len(first["train"]), len(first["validation"])) == (6, 4)
    assert all(first[split][:] == again[split][:] for split in ("train", "validation"))
    assert open_instructions(str(tmp_path), validation_rows=20)["validation"][:] == others[:]


def test_digests_tell_data_apart(model, tmp_path):
    tasks = [loaded(model, save_instructions(tmp_path / f"{seed}.json", 12, seed)) for seed in (0, 1)]
    assert tasks[0].data_digest != tasks[1].data_digest
    assert tasks[0].data_digest == loaded(model, tmp_path / "0.json").data_digest
    assert (tasks[0].head, tasks[0].task_type, tasks[0].metric) == ([], "CAUSAL_LM", "loss")


def write(name, content):
    return lambda folder: (folder / name).write_text(content) and str(folder / name)


def save(*arguments, **named):
    return lambda folder: (
        datasets.Dataset.from_dict(*arguments, **named).save_to_disk(folder / "d") or str(folder / "d")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (write("a.json", "{"), "a.json: cannot be read as JSON "),
        (write("a.jsonl", '{"instruction": "x"}\n{'), "a.jsonl: cannot be read as JSON lines"),
        (write("a.json", '{"a": 1}'), "a.json: holds a dict; accepted: a list of objects with instruction, input, out"),
        (write("a.csv", "x"), "a.csv; accepted: a file .json or .jsonl, a folder, or an id on the hub"),
        (write("a.json", "[]"), "split 'train': has no rows; accepted: one row at least"),
        (
            write("a.json", json.dumps([*instructions(1), {"instruction": "x", "context": "y"}])),
            "a.json: row 2 has no input, output, but instruction, context; accepted: all",
        ),
        (write("a.json", "[3]"), "a.json: row 1 has no instruction, input, output, but none"),
        (
            write("a.json", json.dumps([{"instruction": "x", "input": "", "output": 3}])),
            "split 'train': output of row 1 is 3; accepted: text",
        ),
        (save({"instruction": ["x"], "output": ["y"]}), "has no column input, but instruction, output; accepted: "),
        (write("a.json", json.dumps(instructions(4))), "validation_rows is 4, and .* has 4 rows and no split 'valid"),
        (str, "is no folder that save_to_disk wrote"),
        (lambda _: "nobody/nothing", "data is 'nobody/nothing': neither a file, nor a folder, nor a set that the hub"),
    ],
)
def test_data_that_do_not_fit(tmp_path, data, message):
    with pytest.raises(OptionError, match=message) as raised:
        open_instructions(data(tmp_path), validation_rows=4)
    assert len(str(raised.value).splitlines()) == 1


def test_splits_that_are_missing_or_empty(tmp_path):
    datasets.DatasetDict(test=datasets.Dataset.from_list(instructions(2))).save_to_disk(tmp_path / "test")
    with pytest.raises(OptionError, match="has no split 'train', but 'test'"):
        open_instructions(str(tmp_path / "test"), validation_rows=1)
    empty = datasets.Dataset.from_dict({"instruction": [], "input": [], "output": []})
    empty.save_to_disk(tmp_path / "empty")
    with pytest.raises(OptionError, match="empty.*one row at least"):
        open_instructions(str(tmp_path / "empty"), validation_rows=1)


def test_models_that_cannot_be_tuned(model, tmp_path):
    data = save_instructions(tmp_path / "a.json", 12)
    with pytest.raises(OptionError, match="data is not given; accepted: --data with a file, a folder or an id"):
        get_kind("causal-lm").load(dataclasses.replace(config_of(model, data), data=None))
    with pytest.raises(OptionError, match="whose tokenizer has no end of sequence; accepted: one with eos_token"):
        loaded(save_llama(tmp_path / "endless", eos_token=None), data)
    with pytest.raises(OptionError, match="max_length is 200; accepted by the model: 1 to 128"):
        loaded(model, data, max_length=200)
    with pytest.raises(OptionError, match="max_length is 20, and no answer of split 'train' begins before it"):
        loaded(model, data, max_length=20)
    with pytest.raises(OptionError, match="model is 'nobody/none', which transformers cannot load"):
        loaded("nobody/none", data)


def test_a_padding_of_its_own_is_kept(tmp_path):
    data = save_instructions(tmp_path / "a.json", 12)
    own, none = (loaded(save_llama(tmp_path / name, **names), data) for name, names in (
        ("own", {"pad_token": "<unk>"}), ("none", {}),
    ))  # fmt: skip
    assert (own.collator.tokenizer.pad_token, none.collator.tokenizer.pad_token) == ("<unk>", "</s>")
    assert max(len(row["input_ids"]) for row in own.train) <= PROMPT + 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length is 0; accepted: an integer from 1 on"),
        ({"validation_rows": True}, "validation_rows is True; accepted: an integer from 1 on"),
        ({"validation_rows": None}, "validation_rows is None; accepted: an integer from 1 on"),
        ({"max_train_samples": 1.5}, "max_train_samples is 1.5; accepted"),
        ({"dtype": "half"}, "dtype is 'half'; accepted: float32, bfloat16, float16"),
        ({"quantization": "3bit"}, "quantization is '3bit'; accepted: none, 8bit, 4bit"),
    ],
)
def test_options_that_cannot_be(settings, message):
    with pytest.raises(OptionError, match=message):
        config_of("model", "data", **settings)


def test_losses_of_rows_are_summed_over_their_answers_alone():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(11, (3, 6))
    labels[0, :4], labels[1, 3:] = -100, -100
    found = answer_losses((logits, None), labels)
    for row, (total, number) in enumerate(found.tolist()):
        pairs = [(place, label) for place, label in enumerate(labels[row].tolist()[1:]) if label != -100]
        logs = logits[row].double().log_softmax(-1)
        assert number == len(pairs)
        assert total == pytest.approx(-sum(logs[place, label].item() for place, label in pairs), rel=1e-5)
    # transformers' own is the mean over all labels.
    own = ForCausalLMLoss(logits, labels, 11).item()
    assert answer_metrics((found.numpy(), None)) == pytest.approx({"loss": own, "perplexity": math.exp(own)}, rel=1e-5)
    with pytest.raises(
        TrainingError, match="predictions are not finite; accepted: a smaller learning_rate, or no fp16"
    ):
        answer_metrics((found.numpy() * float("nan"), None))


def test_the_recipe_has_the_figures_of_the_paper():
    recipe = load_recipe("instruct")
    for variant, rank in ((None, 1024), ("table8", 1024), ("table3", 256)):
        config = configure(recipe, "alpaca", Choice(variant=variant), seed=42)
        assert (config.method, config.method_options["r"], config.method_options["alpha"]) == ("loldu", rank, rank)
        assert config.target_modules == ["q_proj", "v_proj"]
        training = config.training
        together = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
        assert (together, training["per_device_train_batch_size"], training["bf16"]) == (128, 1, True)
        assert (training["learning_rate"], training["num_train_epochs"]) == (1e-3, 3)
        assert (config.task_options["max_length"], config.seed) == (256, 42)
        assert config.task_options["lm_eval_tasks"] == ["mmlu", "drop", "bbh", "humaneval"]
    assert recipe.seeds == (42,)
    # Two layers in each of 32 blocks: the numbers that the paper names.
    assert [64 * (rank + 1) for rank in (1024, 256)] == [65_600, 16_448]
