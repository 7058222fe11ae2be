"""Fine-tune all-MiniLM-L6-v2 on human-rated movie snippets, by forms of LDU and by LoRA.

    pip download vaderSentiment==3.3.2 --no-deps --no-binary :all:
    python benchmarks/movies.py --archive vaderSentiment-3.3.2.tar.gz --out FOLDER

Every method gets four learning rates with seed 0; the one of the best validation accuracy is trained with the other
seeds. FOLDER/results.jsonl gets a line for each run as it ends, and a run that has its line there is not done again:
the command goes on where it was stopped, and at the end prints the table.
"""

import argparse
import json
import platform
from pathlib import Path

import peft
import torch
import transformers
from movies_data import tokenized_snippets
from movies_methods import METHODS, file_bytes
from movies_table import print_tables
from movies_training import BATCH, EPOCHS, Classifier, accuracy, features_of, load_tokenizer, train, train_head

import lowrank_ldu
from lowrank_ldu.finetuning.tasks.sentiment import HOW

SIZES = {"training": 4000, "validation": 2000, "test": 2000}
# Other sets are as large as they are; a basis or pivots are fitted to 16 batches of them.
SETTINGS = {"epochs": EPOCHS, "batch": BATCH, **SIZES, "split_seed": 0}


class Experiment:
    """Data, and heads that were trained alone for an epoch: where every method starts."""

    def __init__(self, archive, folder):
        self.archive, self.folder, self.tokenizer = archive, folder, load_tokenizer()
        self.training, self.validation, self.test = self.snippets("movies").split(SIZES.values())

    def snippets(self, name):
        return tokenized_snippets(self.archive, name, self.tokenizer)

    def training_of(self, name):
        if name == "movies":
            return self.training
        snippets = self.snippets(name)
        return snippets.split([min(len(snippets), SIZES["training"])])[0]

    def features(self, name, snippets):
        """The frozen encoder's features, computed once."""
        file = self.folder / f"{name}.pt"
        if not file.exists():
            torch.save(features_of(Classifier(), snippets), file)
        return torch.load(file)

    def started(self, name, seed):
        """A classifier whose head was trained alone on a set, and its training snippets."""
        model, snippets = Classifier(), self.training_of(name)
        train_head(model.head, self.features(f"{name}-training", snippets), snippets, seed, epochs=1)
        return model, snippets

    def head_alone(self, seed):
        model, _ = self.started("movies", seed)
        train_head(model.head, self.features("movies-training", self.training), self.training, seed, EPOCHS)
        return {
            "validation": self._of_features(model, "validation", self.validation),
            "test": self._of_features(model, "test", self.test),
        }

    @torch.no_grad()
    def _of_features(self, model, name, snippets):
        logits = model.head(self.features(f"movies-{name}", snippets)).squeeze(-1)
        return 100 * int(((logits > 0) == (snippets.labels > 0)).sum()) / len(snippets)

    def run(self, method, rate, seed):
        """Train one method, and return its figures."""
        torch.manual_seed(seed)
        model, _ = self.started("movies", seed)
        if method.fitted_on not in {None, "movies"}:
            # Fitted with the head of the other set, then trained from the head of this one.
            head = {name: value.clone() for name, value in model.head.state_dict().items()}
            model, others = self.started(method.fitted_on, seed)
        else:
            head, others = None, self.training
        orders = others.orders(BATCH, seed=seed + 500)
        method.adapt(model, [others.batch(order) for order in orders])
        if head is not None:
            model.head.load_state_dict(head)
        numbers = sum(each.numel() for each in model.encoder.parameters() if each.requires_grad)
        train(model, rate, self.training, seed)
        figures = {"numbers": numbers, "file_bytes": file_bytes(model)}
        return figures | {"validation": accuracy(model, self.validation), "test": accuracy(model, self.test)}


class Results:
    """Lines of a file, one for each run."""

    def __init__(self, folder):
        self.file = folder / "results.jsonl"

    @property
    def rows(self):
        """Of the present settings; read anew, as another process may work on other methods."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [row for row in map(json.loads, lines) if row["settings"] == SETTINGS]

    def find(self, method, rate, seed):
        return next(
            (row for row in self.rows if (row["method"], row["rate"], row["seed"]) == (method, rate, seed)), None
        )

    def add(self, method, rate, seed, figures):
        versions = {module.__name__: module.__version__ for module in (torch, transformers, peft, lowrank_ldu)}
        row = {"method": method, "rate": rate, "seed": seed, **figures, "settings": SETTINGS, "versions": versions}
        row["machine"] = f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
        with self.file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(f"{method} rate {rate} seed {seed}: {figures}", flush=True)

    def best_rate(self, method):
        """The rate of the best validation accuracy with seed 0; None before all are tried."""
        rows = [self.find(method.name, rate, 0) for rate in method.rates]
        return None if None in rows else max(rows, key=lambda row: row["validation"])["rate"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help=f"The data, from {HOW}")
    parser.add_argument("--out", type=Path, required=True, help="Folder of results.jsonl and of cached features.")
    parser.add_argument("--methods", nargs="+", default=[method.name for method in METHODS], help="Only these.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=int, default=4, help="How many of each method's learning rates are tried.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="Print the table of what is there, and run nothing.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out)
    methods = [method for method in METHODS if method.name in arguments.methods]
    if not arguments.list:
        run_all(Experiment(arguments.archive, arguments.out), results, methods, arguments)
    print_tables(METHODS, results)


def run_all(experiment, results, methods, arguments):
    for seed in range(arguments.seeds):
        if not results.find("head", None, seed):
            results.add("head", None, seed, {"numbers": 0, "file_bytes": 0} | experiment.head_alone(seed))
    # One rate of every method, then the next one: what was stopped early holds something of each.
    todo = [(method, place, 0) for place in range(arguments.rates) for method in methods]
    todo += [(method, None, seed) for seed in range(1, arguments.seeds) for method in methods]
    for method, place, seed in todo:
        rate = results.best_rate(method) if place is None else method.rates[place]
        if rate is not None and not results.find(method.name, rate, seed):
            results.add(method.name, rate, seed, experiment.run(method, rate, seed))


if __name__ == "__main__":
    main()
