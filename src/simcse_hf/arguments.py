"""What a run can be told: the model, the data, and the training.

Defaults that differ from `transformers.TrainingArguments` are gathered at the top of
`SimCSETrainingArguments`, each with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from .configuration_simcse import HeadType, PoolerType, ScoredLoss
from .errors import ConfigError

# Below these transformers fails late and without a word, or trains something else.
_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "seed": 0,
    "dataloader_num_workers": 0,
    "early_stopping_patience": 1,
    "max_train_samples": 1,
    "shuffle_buffer": 1,
    "gradient_cache_tokens": 1,
    "scored_batch_size": 1,
    "mlm_weight": 0,
    "lambda_weight": 0,
    "distillation_weight": 0,
}
_SHARES = ("mlm_probability", "masking_ratio")


def _help(text: str) -> dict[str, str]:
    return {"help": text}


def _check_least(arguments: object) -> None:
    for name, least in _LEAST.items():
        value = getattr(arguments, name, None)
        if value is not None and not value >= least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}.")
    for name in _SHARES:
        value = getattr(arguments, name, None)
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{name} is {value}; it is a share of the tokens, above 0 and below 1.")


@dataclass
class ModelArguments:
    """Which encoder, and what becomes of it.

    A field left out takes the value of the model continued from, where that is one of ours, and
    else the default of `SimCSEConfig`.
    """

    model_name_or_path: str | None = field(
        default=None, metadata=_help("Encoder, SimCSE checkpoint or release: a folder, a Hub id, or sample:encoder.")
    )
    tokenizer_name: str | None = field(default=None, metadata=_help("Where the tokenizer lies, if not with the model."))
    pooler_type: PoolerType | None = field(default=None, metadata=_help("How tokens become a sentence vector."))
    mlp_only_train: bool | None = field(
        default=None, metadata=_help("With pooler cls: drop the MLP head at inference (the unsupervised convention).")
    )
    head_type: HeadType | None = field(
        default=None, metadata=_help("The head of pooler cls: mlp, or batchnorm (DiffCSE, for training only).")
    )
    head_size: int | None = field(
        default=None, metadata=_help("Components of the output of an MLP head that is for training only.")
    )
    first_hidden_state: Literal[0, 1] | None = field(
        default=None, metadata=_help("The 'first' layer of avg_first_last: 1 (Princeton) or 0 (the paper).")
    )
    temperature: float | None = field(default=None, metadata=_help("Logits are cosine / temperature."))
    hard_negative_weight: float | None = field(
        default=None, metadata=_help("Added to the logits of a row's own hard negatives.")
    )
    mask_duplicates: bool | None = field(
        default=None, metadata=_help("Never use a sentence as a negative of an equal sentence.")
    )
    symmetric: bool | None = field(
        default=None, metadata=_help("Symmetric InfoNCE: also pick each positive's anchor among all anchors.")
    )
    false_negative_margin: float | None = field(
        default=None,
        metadata=_help(
            "Leave out candidates more similar to the anchor than its positive by more than this, e.g. 0.1."
        ),
    )
    matryoshka_dims: list[int] | None = field(
        default=None, metadata=_help("Also train the first so many components as vectors, e.g. 64 128 256.")
    )
    contrastive_weight: float | None = field(
        default=None, metadata=_help("Of the contrastive loss beside auxiliary ones; 0 with a teacher distils only.")
    )
    scored_loss: ScoredLoss | None = field(
        default=None, metadata=_help("What scored pairs are trained with: cosine_mse, cosent or angle.")
    )
    prompt: str | None = field(default=None, metadata=_help("Text before every sentence, at training and inference."))
    max_seq_length: int | None = field(default=None, metadata=_help("In tokens, special tokens included."))
    head_init: Literal["fresh", "backbone"] = field(
        default="fresh", metadata=_help("Start the MLP head anew, or from the encoder's own pretrained pooler.")
    )
    hidden_dropout_prob: float | None = field(default=None, metadata=_help("Overrides the encoder's own dropout."))
    attention_probs_dropout_prob: float | None = field(
        default=None, metadata=_help("Overrides the encoder's own attention dropout.")
    )
    attn_implementation: str | None = field(default=None, metadata=_help("sdpa (packed rows) or eager (padded)."))
    do_mlm: bool = field(
        default=False, metadata=_help("Auxiliary masked-LM loss on all sentences (Princeton SimCSE's do_mlm).")
    )
    mlm_weight: float = field(default=0.1, metadata=_help("Of the masked-LM loss."))
    mlm_probability: float = field(default=0.15, metadata=_help("Share of the tokens to guess."))
    generator_name: str | None = field(
        default=None, metadata=_help("DiffCSE: a masked language model with the encoder's vocabulary; turns it on.")
    )
    lambda_weight: float = field(default=0.005, metadata=_help("Of DiffCSE's replaced-token-detection loss."))
    masking_ratio: float = field(default=0.3, metadata=_help("Share of the tokens DiffCSE's generator fills in."))
    diffcse_variant: Literal["ours", "legacy_diffcse", "legacy_kodiffcse"] = field(
        default="ours", metadata=_help("ours, or the published code with its defects, for comparison.")
    )
    distillation: Literal["similarities", "vectors"] | None = field(
        default=None, metadata=_help("Learn a teacher's in-batch similarities, or its vectors.")
    )
    distillation_weight: float = field(default=1.0, metadata=_help("Of the distillation loss."))
    distillation_temperature: float = field(
        default=0.05, metadata=_help("Of teacher and student where similarities are distilled.")
    )
    teacher_name_or_path: str | None = field(default=None, metadata=_help("The teacher: a folder or Hub id."))
    teacher_pooler_type: PoolerType | None = field(
        default=None, metadata=_help("How a teacher pools that does not say so itself.")
    )
    teacher_prompt: str | None = field(default=None, metadata=_help("Text before every sentence for the teacher."))
    teacher_vectors: str | None = field(
        default=None, metadata=_help("A .npy of vectors instead of a teacher, one row a line of teacher_sentences.")
    )
    teacher_sentences: str | None = field(default=None, metadata=_help("The text file of teacher_vectors."))
    model_revision: str | None = field(default=None, metadata=_help("Branch, tag or commit of a Hub id."))
    cache_dir: str | None = field(default=None, metadata=_help("Where Hub files are kept."))
    trust_remote_code: bool = field(default=False, metadata=_help("Run code from the model repository."))

    def __post_init__(self):
        _check_least(self)
        if not self.distillation_temperature > 0:
            raise ConfigError(f"distillation_temperature is {self.distillation_temperature}; it must be above 0.")
        has_teacher = bool(self.teacher_name_or_path) or bool(self.teacher_vectors)
        if has_teacher != bool(self.distillation) or (self.teacher_name_or_path and self.teacher_vectors):
            raise ConfigError(
                "distillation needs one teacher and a teacher needs distillation: set distillation to similarities or vectors, and "
                "either teacher_name_or_path or teacher_vectors."
            )
        if bool(self.teacher_vectors) != bool(self.teacher_sentences):
            raise ConfigError(
                "teacher_vectors and teacher_sentences go together: vectors, and the lines they belong to."
            )


@dataclass
class DataArguments:
    """What to train on, and what to score on."""

    train_file: list[str] | None = field(
        default=None, metadata=_help("Files or globs: .txt .tsv .csv .json .jsonl .parquet, also compressed.")
    )
    scored_file: list[str] | None = field(
        default=None, metadata=_help("Multitask: scored pairs, trained with scored_loss in batches between the others.")
    )
    score_scale: list[float] = field(
        default_factory=lambda: [0.0, 5.0], metadata=_help("Lowest and highest score of training pairs, e.g. 0 1.")
    )
    source_weights: list[float] | None = field(
        default=None,
        metadata=_help("How often an epoch takes the rows of each file of train_file, e.g. 0.1 1 3; 1 is once."),
    )
    on_leakage: Literal["report", "drop", "error"] = field(
        default="report", metadata=_help("What to do with training rows that hold a sentence of an evaluation set.")
    )
    train_dataset: str | None = field(
        default=None, metadata=_help("A Hub dataset instead: hub_id[:config][:split][@revision].")
    )
    column_names: list[str] | None = field(
        default=None, metadata=_help("Header of .tsv and .csv training files that have none.")
    )
    train_as: Literal["auto", "sentences", "labels", "scores"] = field(
        default="auto",
        metadata=_help(
            "sentences: take every sentence of every text column as unlabelled. labels: classify NLI pairs. scores: make scored "
            "pairs as similar as they are scored."
        ),
    )
    triplet_rule: Literal["last_wins", "all"] = field(
        default="last_wins", metadata=_help("From NLI rows: one triplet a premise, or all combinations.")
    )
    on_bad_row: Literal["error", "skip"] = field(
        default="error", metadata=_help("Stop at a malformed row, or leave it out and count it.")
    )
    deduplicate: bool = field(default=True, metadata=_help("Drop rows equal to an earlier row."))
    max_train_samples: int | None = field(default=None, metadata=_help("Use only the first so many rows."))
    streaming: bool = field(
        default=False,
        metadata=_help("Read train_file while training, with max_steps: no cache, no de-duplication, any size."),
    )
    shuffle_buffer: int = field(
        default=100_000, metadata=_help("Rows that streaming holds in memory to mix them; 1 mixes nothing.")
    )
    data_cache_dir: str | None = field(
        default=None,
        metadata=_help("Where tokenised training data is kept; else SIMCSE_CACHE_DIR, else ~/.cache/simcse_hf."),
    )
    eval_task: str | None = field(
        default="korsts-dev",
        metadata=_help("Scored while training and used to choose the checkpoint: a task, a file, sample:sts, or none."),
    )
    final_tasks: list[str] | None = field(
        default=None, metadata=_help("Also scored at the end, for example korsts-test klue-sts-dev.")
    )
    data_dir: str | None = field(
        default=None, metadata=_help("Folder with the KorSTS and KLUE files; else SIMCSE_DATA_DIR.")
    )

    def __post_init__(self):
        _check_least(self)
        if len(self.score_scale) != 2 or not self.score_scale[0] < self.score_scale[1]:
            raise ConfigError(
                f"score_scale is {self.score_scale}; give the lowest and the highest score, for example 0 5."
            )


@dataclass
class SimCSETrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults of this field, and a few arguments more."""

    # SimCSE trains for one epoch (unsupervised) to three; HF's default is three.
    num_train_epochs: float = field(default=1.0, metadata=_help("Passes over the training rows."))
    per_device_train_batch_size: int = field(default=64, metadata=_help("Rows, and so negatives, of one process."))
    per_device_eval_batch_size: int = field(default=128, metadata=_help("Pairs; does not change the scores."))
    # 125 steps is the interval of Princeton SimCSE and of every Korean system since.
    eval_strategy: str = field(default="steps", metadata=_help("no, steps or epoch."))
    eval_steps: float | None = field(default=125, metadata=_help("Steps between evaluations."))
    save_strategy: str = field(default="steps", metadata=_help("no, steps, epoch or best."))
    save_steps: float = field(default=125, metadata=_help("Steps between checkpoints."))
    save_total_limit: int | None = field(default=2, metadata=_help("Checkpoints kept; the best always is."))
    # The published checkpoints are the best on KorSTS-dev, not the last.
    load_best_model_at_end: bool = field(default=True, metadata=_help("Release the best checkpoint, not the last."))
    metric_for_best_model: str | None = field(default="cosine_spearman", metadata=_help("What best means."))
    greater_is_better: bool | None = field(default=True, metadata=_help("Whether larger is better."))
    logging_steps: float = field(default=25, metadata=_help("Steps between log lines."))
    # A short last batch has fewer negatives, so its loss is on another scale.
    dataloader_drop_last: bool = field(default=True, metadata=_help("Leave out a short last batch."))
    # Our dataset yields token ids, not columns.
    remove_unused_columns: bool = field(default=False, metadata=_help("Must stay false."))

    gradient_cache_tokens: int | None = field(
        default=None,
        metadata=_help(
            "Gradient caching: hold the activations of about so many tokens at a time and compute them twice. The loss and "
            "its gradients are those of the whole batch, which may so be of any size. A CPU holds 1,024 at most."
        ),
    )
    scored_batch_size: int | None = field(
        default=None, metadata=_help("Rows of a batch of scored_file; per_device_train_batch_size where left out.")
    )
    mixing: Literal["alternate", "proportional"] = field(
        default="alternate",
        metadata=_help(
            "alternate: a batch of train_file, a batch of scored_file, until one of them ends. proportional: all of both."
        ),
    )
    first_stage: str | None = field(
        default=None,
        metadata=_help(
            "A JSON or YAML file with what differs in a first training, into output_dir/first_stage; this one goes on from its "
            "result."
        ),
    )
    early_stopping_patience: int | None = field(
        default=None, metadata=_help("Stop after so many evaluations without a better score.")
    )
    allow_no_dropout: bool = field(
        default=False, metadata=_help("Let an unsupervised run start although both views would be identical.")
    )
    write_release: bool = field(default=True, metadata=_help("Write the release into output_dir at the end."))

    def __post_init__(self):
        _check_least(self)
        try:
            super().__post_init__()
        except ValueError as error:
            if "load_best_model_at_end" not in str(error):
                raise
            cure = "Without an evaluation set (eval_task none) set load_best_model_at_end to false"
            raise ValueError(
                f"{str(error).rstrip('.')}. {cure}; else choose save_steps and eval_steps that fit."
            ) from None
