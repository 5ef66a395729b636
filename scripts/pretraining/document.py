"""docs/embedded_encoder.md and the encoder's card from the JSON files in `results/`; every number comes from them.

python scripts/pretraining/document.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from simcse_hf.files import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
REPOSITORY = HERE.parent.parent
REPORT = REPOSITORY / "docs" / "embedded_encoder.md"
CARD = REPOSITORY / "src" / "simcse_hf" / "sample" / "encoder" / "README.md"
_POINTS = 24  # of the loss curve


def main() -> None:
    write_text(REPORT, report())
    write_text(CARD, card())


def report() -> str:
    """The whole document."""
    sections = [_head(), _scores(), _training(), _corpus(), _search(), _again()]
    return "\n".join(line for section in sections for line in section) + "\n"


def card() -> str:
    """README.md of the encoder's folder."""
    shipped = _load("distilled")
    metadata = {
        "language": "ko",
        "license": "cc-by-sa-4.0",
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
    }
    return "\n".join(
        [
            "---",
            *(f"{key}: {value}" for key, value in metadata.items()),
            "---",
            "",
            "# A small Korean encoder",
            "",
            *_what_it_is(),
            "Pool its last layer by the mean (`pooler_type: avg`); it has no pooler of its own. It reads 128 tokens.",
            "",
            f"KorSTS-dev ({shipped['pairs']:,} pairs), cosine Spearman x 100: {_one(shipped['raw']['avg'])} as it is; "
            f"{_each(list(shipped['unsupervised'].values()))} after unsupervised and "
            f"{_each(list(shipped['supervised'].values()))} after supervised SimCSE, mean (each of three seeds). "
            f"How that was done, and what costs less and scores as well, is in `docs/embedded_encoder.md` of simcse_hf, with the "
            "loss curves and the search.",
            "",
            "## Text and licence",
            "",
            "CC BY-SA 4.0, as part of the text. The teacher is intfloat/multilingual-e5-small (MIT), cut to Korean.",
            "The film reviews hold rude language, and the vectors may reflect it.",
            "",
            *_sources(),
            "",
        ]
    )


def _load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _head() -> list[str]:
    return [
        "# The encoder in the package",
        "",
        "Written by `python scripts/pretraining/document.py` from the JSON files in `scripts/pretraining/results`; do not edit.",
        "",
        *_what_it_is(),
        "It is there to try the package with, offline and in seconds; for anything else take a larger encoder.",
        "",
    ]


def _what_it_is() -> list[str]:
    training, teaching = _load("training"), _load("distillation")
    recipe = training["recipe"]
    return [
        f"`sample:encoder` is a BERT of {recipe['layers']} layers, hidden size {recipe['hidden_size']}, "
        f"{recipe['heads']} heads, with a {recipe['tokenizer'].upper()} vocabulary of {recipe['vocab_size']:,} pieces and "
        f"bytes for the rest: {teaching['parameters'] / 1e6:.1f} million parameters in float16. It was pretrained as a masked "
        f"language model on {_load('corpus')['sentences']:,} Korean sentences, and then taught by a large sentence encoder "
        f"({teaching['settings']['teacher']}), without labels."
    ]


def _scores() -> list[str]:
    randoms = [_load(path.stem) for path in sorted(RESULTS.glob("random-seed*.json"))]
    variants = {"masked LM": _load("masked-lm"), "masked LM, then taught (shipped)": _load("distilled")}
    tf_idf = _load("baselines")["tf_idf"]
    best = max(tf_idf["cosine_spearman"], key=tf_idf["cosine_spearman"].get)
    rows = []
    for name, record in variants.items():
        cells = [_one(record["raw"]["avg"]), _one(record["raw"]["avg_first_last"])]
        cells += [_each(list(record[kind].values())) for kind in ("unsupervised", "supervised")]
        rows.append([name, *cells])
    rows.append(
        [
            "same shape, random weights",
            _each([record["raw"]["avg"] for record in randoms]),
            _each([record["raw"]["avg_first_last"] for record in randoms]),
            *(
                _each([value for record in randoms for value in record[kind].values()])
                for kind in ("unsupervised", "supervised")
            ),
        ]
    )
    for name, record in variants.items():
        rows.append([f"mean of its word embeddings: {name}", _one(record["input_embeddings"]), "", "", ""])
    rows.append([f"TF-IDF of character n-grams, n = {best}", _one(tf_idf["cosine_spearman"][best]), "", "", ""])
    settings = variants["masked LM"]["settings"]
    rates = " and ".join(f"{settings[kind]['learning_rate']:g} ({kind})" for kind in ("unsupervised", "supervised"))
    return [
        "## Scores",
        "",
        f"KorSTS-dev ({variants['masked LM']['pairs']:,} pairs), cosine Spearman x 100, last weights, seeds 1, 2, 3: mean (each).",
        "",
        *_table(["encoder", "raw, avg", "raw, avg_first_last", "after unsupervised", "after supervised"], rows),
        "",
        "Unsupervised: the sentences of KorSTS-train. Supervised: the triplets of XNLI dev and test and KLUE-NLI dev. One epoch, "
        f"batches of {settings['training']['per_device_train_batch_size']}, learning rate {rates}, mean pooling, temperature "
        f"{settings['model']['temperature']}, chosen on KorSTS-dev with seed 1. The n-grams are weighted by "
        f"{tf_idf['sentences']:,} sentences; of {', '.join(tf_idf['cosine_spearman'])} the best is shown.",
        f"Hardware: {variants['masked LM']['hardware'].replace('1 threads', '1 thread')}.",
        "",
        "On this set masked language modelling alone, for this long, is worth no more than random weights, and less than counting",
        "n-grams; what the encoder knows of meaning it has from its teacher. Whether the teaching needs the masked LM first was",
        "not measured. Supervised SimCSE on the few triplets that there are hardly helps any of the three.",
        "",
    ]


def _training() -> list[str]:
    training, teaching = _load("training"), _load("distillation")
    return [
        "## Training",
        "",
        f"Masked LM: {training['steps']:,} steps of {training['recipe']['batch_sentences']} sentences, "
        f"{training['epochs']:.1f} epochs of {training['tokens_per_epoch'] / 1e6:.1f} million tokens, "
        f"{training['recipe']['mask_rate']:.0%} of them to be guessed, {training['seconds'] / 60:.0f} minutes on "
        f"{training['processes']} processes of {training['threads']} thread ({training['hardware']}).",
        "",
        *_curve(training["loss_curve"], "Masked LM, mean cross-entropy"),
        f"Teaching: {teaching['sentences']:,} sentences, {teaching['epochs']:.0f} epochs, {teaching['seconds'] / 60:.0f} minutes "
        f"on {teaching['processes']} process of {teaching['threads']} threads, after the teacher's own vectors were computed.",
        "",
        *_curve(teaching["loss_curve"], "Teaching, one minus the cosine"),
    ]


def _curve(points: list[dict], title: str) -> list[str]:
    width = max(1, len(points) // _POINTS)
    chosen = points[width - 1 :: width]
    steps = ", ".join(str(point["step"]) for point in chosen)
    losses = ", ".join(f"{point['loss']:.3f}" for point in chosen)
    lowest, highest = min(point["loss"] for point in chosen), max(point["loss"] for point in chosen)
    return [
        "```mermaid",
        "xychart-beta",
        f'  title "{title}"',
        f'  x-axis "step" [{steps}]',
        f'  y-axis "loss" {lowest * 0.95:.3f} --> {highest * 1.05:.3f}',
        f"  line [{losses}]",
        "```",
        "",
    ]


def _corpus() -> list[str]:
    corpus = _load("corpus")
    own = _load("masked-lm")["tokenizer"]
    ((name, other),) = _load("baselines")["tokenizer"].items()
    kept_out = ", ".join(f"{task} ({count:,})" for task, count in corpus["kept_out"].items())
    return [
        "## Text",
        "",
        f"{corpus['sentences']:,} distinct sentences. Kept out, whatever their spacing and final punctuation, were the sentences "
        f"of {kept_out}; the files of `unlabeled` had been freed of KorSTS-test and KLUE-STS-dev before. Because part of the text",
        "is CC BY-SA 4.0, so are the weights. The film reviews hold rude language.",
        "",
        *_sources(),
        "",
        f"The vocabulary cuts this text into {corpus['pieces_per_word']:.2f} pieces a word, {corpus['byte_share']:.2%} of them "
        f"bytes; unknown: {corpus['unknown_share']:.0%}. KorSTS-dev: {own['pieces_per_word']:.2f} pieces a word, unknown "
        f"{own['unknown_share']:.0%}; the {name} tokenizer, with 30,000 pieces, needs {other['pieces_per_word']:.2f}.",
        "",
    ]


def _sources() -> list[str]:
    rows = [
        [source["name"], f"{source['sentences']:,}", source["licence"], source["left_out_for_evaluation"]]
        for source in _load("corpus")["sources"]
    ]
    return _table(["source", "sentences", "licence", "left out for evaluation"], rows)


def _search() -> list[str]:
    early = _load("search-early")
    rows = [
        [
            entry["name"],
            entry["steps"],
            f"{entry['parameters'] / 1e6:.2f}",
            f"{entry['seconds']}",
            f"{entry['loss']:.2f}",
            *(f"{entry[score]:.1f}" for score in ("raw", "unsupervised", "supervised")),
        ]
        for entry in early["runs"]
    ]
    tokenizers = [
        _load(path.stem) | {"name": path.stem[7:]}
        for path in sorted(RESULTS.glob("search-*.json"))
        if path.stem != "search-early"
    ]
    lines = [
        "## Search",
        "",
        early["about"],
        "",
        *_table(["run", "steps", "M parameters", "seconds", "loss", "raw, avg", "unsupervised", "supervised"], rows),
        "",
    ]
    if tokenizers:
        rows = [
            [
                entry["name"],
                f"{entry['tokenizer']['korsts-dev']['pieces_per_word']:.2f}",
                f"{entry['tokenizer']['korsts-dev']['unknown_share']:.3%}",
                f"{entry['tokenizer']['corpus']['unknown_share']:.3%}",
                f"{entry['tokenizer']['corpus']['byte_share']:.2%}",
                f"{entry['loss']:.2f}",
                _one(entry["raw"]["avg"]),
                _one(entry["unsupervised"]),
                _one(entry["supervised"]),
            ]
            for entry in tokenizers
        ]
        lines += [
            "Tokenizers of the same size, the recipe otherwise as shipped and cut to "
            f"{tokenizers[0]['differs']['steps']} steps (`search.py`; one seed):",
            "",
            *_table(
                [
                    "tokenizer",
                    "pieces a word, KorSTS-dev",
                    "unknown, KorSTS-dev",
                    "unknown, corpus",
                    "bytes, corpus",
                    "loss",
                    "raw, avg",
                    "unsupervised",
                    "supervised",
                ],
                rows,
            ),
            "",
            "Losses of different vocabularies cannot be compared. Two more were compared by fertility only, in a",
            "prototype trained on a quarter of the text; pieces a word of KorSTS-dev: "
            + ", ".join(f"{name} {pieces:.2f}" for name, pieces in early["pieces_per_word"].items())
            + ".",
            "",
        ]
    return lines


def _again() -> list[str]:
    return [
        "## Again",
        "",
        "```bash",
        "export SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models OMP_NUM_THREADS=1",
        "python -m torch.distributed.run --standalone --nproc_per_node 2 scripts/pretraining/pretrain.py --output runs/pretraining",
        "OMP_NUM_THREADS=2 python scripts/pretraining/distill.py --student runs/pretraining/encoder --output runs/distillation",
        "python scripts/pretraining/score.py --encoder masked-lm=runs/pretraining/encoder \\",
        "    --encoder distilled=runs/distillation/encoder",
        "cp runs/distillation/encoder/* src/simcse_hf/sample/encoder/",
        "```",
        "",
        "Each goes on where it was interrupted, to the weights of a run that was not. On other machines, or with other numbers of",
        "processes and threads, arithmetic differs in the last digits, and with it, in the end, the weights.",
    ]


def _one(value: float) -> str:
    return f"{100 * value:.2f}"


def _each(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} ({' '.join(f'{100 * value:.2f}' for value in values)})"


def _table(header: list[str], rows: list[list]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


if __name__ == "__main__":
    main()
