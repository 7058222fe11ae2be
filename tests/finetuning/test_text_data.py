"""Data of text tasks: every place it can come from, and what is said of data that does not fit."""

import hashlib
import math

import datasets
import numpy as np
import pytest
from tiny_text_models import data_set, offline, save_model

from lowrank_ldu.errors import OptionError, TrainingError
from lowrank_ldu.finetuning import Choice, load_recipe
from lowrank_ldu.finetuning.configuration import configure
from lowrank_ldu.finetuning.tasks import get_kind, sentiment
from lowrank_ldu.finetuning.tasks.data_files import limit_of
from lowrank_ldu.finetuning.tasks.metrics import classification_metrics, regression_metrics
from lowrank_ldu.finetuning.tasks.sentiment import Snippet, read_snippets, snippet_splits

MNLI = ("validation_matched", "validation_mismatched")


_offline = pytest.fixture(offline, scope="module", autouse=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "roberta")


def loaded(model, data, task="sst2", recipe="glue", **settings):
    choice = Choice(model=str(model), data=data and str(data), settings={"max_length": 16, **settings})
    config = configure(load_recipe(recipe), task, choice, seed=0)
    return get_kind(config.kind).load(config)


def same_rows(first, second):
    return first.train[:] == second.train[:] and first.validation[:] == second.validation[:]


def test_folders_csv_and_json_files_give_the_same_rows(model, tmp_path):
    data = data_set()
    data.save_to_disk(tmp_path / "saved" / "sst2")
    (tmp_path / "csv").mkdir()
    (tmp_path / "json").mkdir()
    for split, rows in data.items():
        rows.to_csv(tmp_path / "csv" / f"{split}.csv")
        rows.to_json(tmp_path / "json" / f"{split}.json")
    tasks = [loaded(model, tmp_path / name) for name in ("saved", "saved/sst2", "csv", "json")]
    assert len(tasks[0].train) == 64
    assert set(tasks[0].train[0]) >= {"input_ids", "attention_mask", "labels"}
    assert all(same_rows(tasks[0], each) and each.data_digest == tasks[0].data_digest for each in tasks)
    assert tasks[0].head == ["classifier"]
    data_set(train=65).save_to_disk(tmp_path / "more")
    assert loaded(model, tmp_path / "more").data_digest != tasks[0].data_digest


def test_pairs_with_three_labels_and_two_evaluations(model, tmp_path):
    data_set(("premise", "hypothesis"), label=lambda good: 2 * good, splits=MNLI).save_to_disk(tmp_path)
    task = loaded(model, tmp_path, "mnli")
    assert task.model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert task.model(input_ids=task.model.dummy_inputs["input_ids"] % 5).logits.shape[1] == 3
    assert set(task.others) == {"validation_mismatched"}
    # Two texts with a separator between them.
    assert task.train[0]["input_ids"].count(2) == 2


def test_labels_are_numbered_by_their_names(model, tmp_path):
    data = data_set()
    names = datasets.ClassLabel(names=["positive", "negative"])
    turned = data.map(lambda row: {"label": 1 - row["label"]}).cast_column("label", names)
    spelled = data.map(lambda row: {"label": ["negative", "positive"][row["label"]]}, features=None)
    for name, each in (("plain", data), ("turned", turned), ("spelled", spelled)):
        each.save_to_disk(tmp_path / name)
    plain, turned, spelled = (loaded(model, tmp_path / name) for name in ("plain", "turned", "spelled"))
    assert plain.train["labels"][:] == turned.train["labels"][:] == spelled.train["labels"][:]


def test_a_part_of_the_rows_is_taken_at_random(model, tmp_path):
    rows = data_set(train=100)
    labels = rows["train"]["label"][:]
    rows["train"] = rows["train"].select(sorted(range(100), key=labels.__getitem__))
    rows.save_to_disk(tmp_path)
    task = loaded(model, tmp_path, max_train_samples=20, max_eval_samples=10)
    assert (len(task.train), len(task.validation)) == (20, 10)
    assert 0 < sum(task.train["labels"][:]) < 20
    assert same_rows(task, loaded(model, tmp_path, max_train_samples=20, max_eval_samples=10))


def test_rows_to_choose_by_and_rows_to_test_on_have_limits_of_their_own(model, tmp_path):
    options = {"max_train_samples": 3, "max_eval_samples": 5, "max_predict_samples": 7}
    limits = [limit_of(split, options) for split in ("train", "validation_matched", "validation_mismatched", "test")]
    assert limits == [3, 5, 5, 7]
    task = loaded(model, saved(tmp_path, data_set(validation=12)), max_eval_samples=5, max_predict_samples=7)
    assert len(task.validation) == 5


def with_null(column, number):
    data = data_set()
    rows = data["train"].to_dict()
    rows[column][number - 1] = None
    data["train"] = datasets.Dataset.from_dict(rows)
    return data


def test_rows_of_one_label_are_told(model, tmp_path):
    kind = data_set(label=lambda _: 1)
    with pytest.warns(UserWarning, match="rows of split") as warned:
        loaded(model, saved(tmp_path, kind))
    assert [str(each.message) for each in warned] == [
        "all 64 rows of split 'train' have the label 'positive': there is nothing to learn",
        "all 32 rows of split 'validation' have the label 'positive': its metrics say nothing",
    ]


def saved(tmp_path, data):
    data.save_to_disk(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        (
            lambda: data_set(("text",)),
            "sst2",
            "split 'train' has no column sentence, but text, label; accepted: sentence, label",
        ),
        (
            lambda: data_set(label=lambda good: 2 * good),
            "sst2",
            r"split 'train' has labels 0, 2; accepted by the head: 0",
        ),
        (
            lambda: data_set(label=lambda good: "good" if good else "bad"),
            "sst2",
            r"has labels 'bad', 'good'; accepted by the head: 0 \(negative\), 1 \(positive\)",
        ),
        (lambda: data_set(label=lambda _: -1), "sst2", r"split 'train' has labels -1; accepted by the head"),
        (
            lambda: data_set(("sentence1", "sentence2"), label=str),
            "stsb",
            "split 'train' has label '.'; accepted: finite numb",
        ),
        (lambda: with_null("sentence", 3), "sst2", "split 'train': sentence of row 3 is None; accepted: text"),
        (lambda: with_null("label", 5), "sst2", "split 'train': label of row 5 is None; accepted: a label"),
        (
            lambda: data_set(label=lambda good: [good]),
            "sst2",
            r"split 'train' has labels \[0\], \[1\]; accepted by the",
        ),
        (
            lambda: data_set(("sentence1", "sentence2"), label=lambda _: math.nan),
            "stsb",
            "split 'train' has label nan; accepted: finite numbers",
        ),
        (lambda: data_set(splits=("test",)), "sst2", "has no split 'validation', but 'test', 'train'"),
        (lambda: data_set(train=0), "sst2", "split 'train' is empty; accepted: one row at least"),
    ],
)
def test_data_that_do_not_fit_the_task(model, tmp_path, data, task, message):
    with pytest.raises(OptionError, match=message) as raised:
        loaded(model, saved(tmp_path, data()), task)
    assert len(str(raised.value).splitlines()) == 1


def test_places_without_data(model, tmp_path):
    (tmp_path / "train.csv").write_text("a,b\n1\n")
    with pytest.raises(OptionError, match="train.csv: cannot be read as CSV"):
        loaded(model, tmp_path)
    (tmp_path / "empty").mkdir()
    for name, content in (("train.csv", "sentence,label\na,1\n"), ("validation.json", "")):
        (tmp_path / "empty" / name).write_text(content)
    with pytest.raises(OptionError, match="validation.json: split 'validation' is empty; accepted: one row at least"):
        loaded(model, tmp_path / "empty")
    with pytest.raises(OptionError, match=r"train.csv, a file; accepted: a folder of the task's splits, or an id"):
        loaded(model, tmp_path / "train.csv")
    with pytest.raises(OptionError, match="data is 'nobody/nothing': neither a folder nor a set that the hub gives"):
        loaded(model, "nobody/nothing")
    with pytest.raises(OptionError, match="data is not given; accepted: --data vaderSentiment-3.3.2.tar.gz, from pip"):
        loaded(model, None, "movies-polarity", "sentiment")


def test_models_that_do_not_fit_the_task(tmp_path):
    data = saved(tmp_path, data_set())
    with pytest.raises(OptionError, match="model is 'nobody/nothing', which transformers cannot load"):
        loaded("nobody/nothing", data)
    save_model(tmp_path / "five", num_labels=5)
    with pytest.raises(
        OptionError, match="whose head is not one of 2 outputs; accepted for sst2: a model without a head"
    ):
        loaded(tmp_path / "five", data)
    save_model(tmp_path / "two", num_labels=2)
    assert loaded(tmp_path / "two", data).model.config.num_labels == 2


def test_correlations_of_constants_are_zero_and_predictions_are_finite():
    compute = regression_metrics(["pearson", "spearman"])
    assert compute((np.ones((4, 1)), np.arange(4.0))) == {"pearson": 0.0, "spearman": 0.0}
    assert compute((np.arange(4.0)[:, None] ** 3, np.arange(4.0)))["spearman"] == pytest.approx(1)
    labels = classification_metrics(["matthews_correlation", "accuracy", "f1"])
    logits = np.array([[1.0, 0.0]] * 4)
    assert labels((logits, np.array([0, 0, 1, 1]))) == {"matthews_correlation": 0.0, "accuracy": 0.5, "f1": 0.0}
    with pytest.raises(TrainingError, match="predictions are not finite"):
        labels((logits * np.nan, np.array([0, 0, 1, 1])))


def test_snippets_are_split_by_their_ids_alone():
    splits = [Snippet(f"movies:{place}", 1.0, "").split for place in range(5000)]
    shares = [splits.count(name) / 5000 for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    assert splits[7] == Snippet("movies:7", -2.0, "another text").split


def test_another_archive_is_refused(model, tmp_path):
    archive = tmp_path / "other.tar.gz"
    archive.write_bytes(b"no archive")
    with pytest.raises(OptionError, match=f"has sha256 .*; accepted: {sentiment.SHA256}, of vaderSentiment-3.3.2"):
        loaded(model, archive, "movies-polarity", "sentiment")


def test_snippets_of_an_archive_of_the_same_form(model, tmp_path, monkeypatch):
    import io
    import tarfile

    def packed(files):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    lines = "".join(f"{place}_1\t{(place % 5) - 2.0}\tgood film {place}\r\n" for place in range(200))
    inner = packed({"hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt": lines.encode()})
    content = packed({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner})
    (tmp_path / "archive.tar.gz").write_bytes(content)
    monkeypatch.setattr(sentiment, "SHA256", hashlib.sha256(content).hexdigest())
    snippets = read_snippets(tmp_path / "archive.tar.gz", "amazon")
    assert (len(snippets), snippets[3]) == (200, Snippet("amazon:3_1", 1.0, "good film 3"))
    polarity = snippet_splits(tmp_path / "archive.tar.gz", "amazon", polarity=True)
    assert sum(len(split["text"]) for split in polarity.values()) == 160
    rating = loaded(model, tmp_path / "archive.tar.gz", "amazon-rating", "sentiment")
    assert len(rating.train) + len(rating.validation) + len(rating.others["test"]) == 200
    assert set(rating.train["labels"][:]) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert rating.metric == "pearson"
