"""What runs in the processes that `engine.py` starts: a job in, figures out.

Imports stand inside the functions: the time from start to first step is one of the figures, and neither side is to wait
for what only the other needs.
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback, set_seed

LEARNING_RATE = 5e-5
TEMPERATURE = 0.05
WARM_UP_SENTENCES = 256
PEER_BATCH_SIZES = (32, 128)
PEER_MINI_BATCH = 64
PEER_TOKENS_AT_ONCE = 256
COLUMNS = ("anchor", "positive", "negative")


class StepClock(TrainerCallback):
    """When the first step began and every step ended.

    A step's time is from the end of the one before to its own end, so that it holds what the collator does.
    """

    def __init__(self):
        self.began: float | None = None
        self.ends: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if self.began is None:
            self.began = _now()

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(_now())

    def seconds(self, skip: int) -> list[float]:
        """Of each step but the first `skip`."""
        marks = [self.began, *self.ends]
        return [end - start for start, end in zip(marks[skip:-1], marks[skip + 1 :], strict=True)]


def _now() -> float:
    # Trainer reads the loss of every step anyway, so waiting for the device here costs neither side anything.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def train(side: str, job: dict) -> dict:
    """Steps on rows of text."""
    rows = [tuple(row) for row in _read_rows(job)]
    clock = StepClock()
    if side == "ours":
        model, tokenizer = _our_model(job)
        trainer = _our_trainer(job, model, tokenizer, _our_dataset(rows, tokenizer, job), clock)
    else:
        model = _peer_model(job)
        tokenizer = model.tokenizer
        trainer = _peer_trainer(job, model, _peer_dataset(list(zip(*rows, strict=True))), clock)
    loss = trainer.train().training_loss
    peak = _peak_mib()
    lengths = _token_counts(rows, tokenizer, job["max_length"])
    seconds = clock.seconds(job["skip"])
    tokens = [int(lengths[step].sum()) for step in _timed_steps(job, len(lengths))]
    return {
        "sentences_per_second": job["batch"] * lengths.shape[1] / statistics.median(seconds),
        "tokens_per_second": statistics.median(count / second for count, second in zip(tokens, seconds, strict=True)),
        "seconds_per_step": statistics.median(seconds),
        "peak_mib": peak,
        "loss": loss,
    }


def encode(side: str, job: dict) -> dict:
    """Sentences to vectors; the vectors are left in the job's folder for comparison."""
    sentences = [row[0] for row in _read_rows(job)]
    dtype = torch.bfloat16 if job["bf16"] else torch.float32
    if side == "ours":
        from simcse_hf import SentenceEncoder

        encoder = SentenceEncoder.from_pretrained(
            job["encoder"], pooler_type="avg", max_seq_length=job["max_length"], dtype=dtype
        )
        settings = [{}]
    else:
        encoder = _peer_model(job, dtype=dtype)
        settings = [{"batch_size": size} for size in PEER_BATCH_SIZES]
    seconds = []
    for setting in settings:
        encoder.encode(sentences[:WARM_UP_SENTENCES], **setting)
        start = _now()
        vectors = encoder.encode(sentences, **setting)
        seconds.append(_now() - start)
    vectors = np.asarray(vectors, dtype=np.float32)
    np.save(job["vectors"], vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return {"sentences_per_second": len(sentences) / min(seconds), "peak_mib": _peak_mib()}


def start(side: str, job: dict) -> dict:
    """From the start of the process to the end of the first step, on a file of sentences."""
    job = job | {"steps": 1}
    if side.startswith("ours"):
        from simcse_hf import DataArguments, ModelArguments, train_simcse

        train_simcse(
            ModelArguments(**_our_model_settings(job)),
            DataArguments(train_file=[job["sentences"]], eval_task="none"),
            _our_arguments(job, write_release=False),
        )
    else:
        lines = Path(job["sentences"]).read_text(encoding="utf-8").splitlines()
        model = _peer_model(job)
        _peer_trainer(job, model, _peer_dataset([lines]), StepClock()).train()
    return {"to_first_step": time.time() - job["spawned"]}


def tokenise(side: str, job: dict) -> dict:
    """Each line once."""
    rows = [tuple(row) for row in _read_rows(job)]
    lines = [row[0] for row in rows]
    if side == "ours":
        _, tokenizer = _our_model(job)
        begin = time.perf_counter()
        _our_dataset(rows, tokenizer, job)
    else:
        model = _peer_model(job)
        begin = time.perf_counter()
        # What its collator does with each column of each batch.
        for first in range(0, len(lines), PEER_TOKENS_AT_ONCE):
            model.preprocess(lines[first : first + PEER_TOKENS_AT_ONCE])
    return {"lines_per_second": len(lines) / (time.perf_counter() - begin)}


def memory_corpus(side: str, job: dict) -> dict:
    """What a corpus adds to the memory of a process that has loaded its packages and its model."""
    if side == "ours":
        from simcse_hf import DataArguments
        from simcse_hf.cache_folder import cache_root
        from simcse_hf.training_corpus import tokenized_views
        from simcse_hf.training_sets import load_training_views

        _, tokenizer = held = _our_model(job)

        def build():
            views = load_training_views(DataArguments(train_file=[job["sentences"]]))
            return views, tokenized_views(views, tokenizer, cache_root(), max_length=job["max_length"])
    else:
        import datasets  # noqa: F401  (not to be counted as part of the corpus)

        held = _peer_model(job)

        def build():
            return _peer_dataset([Path(job["sentences"]).read_text(encoding="utf-8").splitlines()])

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = {field: _memory_mib(field) for field in ("VmRSS", "RssAnon")}
    corpus = build()
    gc.collect()
    figures = {
        "resident_mib": _memory_mib("VmRSS") - before["VmRSS"],
        "anonymous_mib": _memory_mib("RssAnon") - before["RssAnon"],
        "peak_growth_mib": _memory_mib("VmHWM") - before["VmRSS"],
    }
    del corpus, held
    return figures


def gpu(side: str, job: dict) -> dict:
    """Steps on rows of token ids, and what part of the matrix hardware they use."""
    peak = matmul_peak(job["matmul_size"], torch.bfloat16)
    with np.load(job["ids"]) as stored:
        ids = dict(stored)
    rows, lengths = ids["rows"], np.diff(ids["offsets"])
    job = job | {"compile": side.endswith("-compile")}
    clock = StepClock()
    if side.startswith("ours"):
        from simcse_hf.sentence_store import SentenceStore, ViewsDataset

        model, tokenizer = _our_model(job)
        dataset = ViewsDataset(SentenceStore(ids["tokens"], ids["offsets"]), rows)
        trainer = _our_trainer(job, model, tokenizer, dataset, clock)
    else:
        from datasets import Dataset
        from sentence_transformers.base.data_collator import BaseDataCollator

        model = _peer_model(job)
        dataset = Dataset.from_dict({column: rows[:, view] for view, column in enumerate(COLUMNS)})
        # The columns hold sentence numbers: its collator then does what it does with text, without tokenising.
        collator = BaseDataCollator(preprocess_fn=lambda numbers, **_: _peer_features(model[0], ids, numbers))
        trainer = _peer_trainer(job, model, dataset, clock, data_collator=collator)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    loss = trainer.train().training_loss
    seconds = clock.seconds(job["skip"])
    timed = [lengths[rows[step]] for step in _timed_steps(job, len(rows))]
    floating = sum(model_flops(job, step) for step in timed)
    return {
        "sentences_per_second": job["batch"] * rows.shape[1] / statistics.median(seconds),
        "tokens_per_second": sum(int(step.sum()) for step in timed) / sum(seconds),
        "seconds_per_step": statistics.median(seconds),
        "epoch_seconds": len(rows) // job["batch"] * sum(seconds) / len(seconds),
        "flops_utilisation": floating / sum(seconds) / peak,
        "matmul_teraflops": peak / 1e12,
        "peak_mib": _peak_mib(),
        "loss": loss,
    }


def model_flops(job: dict, lengths: np.ndarray) -> float:
    """Forward and backward on real tokens alone: 6 P n + 12 layers hidden sum(length^2), P without embeddings."""
    attention = 12 * job["layers"] * job["hidden"] * np.square(lengths.astype(np.float64)).sum()
    return float(6 * job["parameters"] * lengths.sum() + attention)


def matmul_peak(size: int, dtype: torch.dtype, repeats: int = 30) -> float:
    """FLOP/s of the fastest of `repeats` products of two square matrices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        begin = _now()
        left @ right
        seconds.append(_now() - begin)
    return 2 * size**3 / min(seconds)


def _read_rows(job: dict) -> list[list[str]]:
    with Path(job["rows"]).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _timed_steps(job: dict, rows: int) -> list[slice]:
    """The rows of each step that is timed; after the last whole batch the order begins anew."""
    batch, batches = job["batch"], rows // job["batch"]
    numbers = [step % batches for step in range(job["skip"], job["steps"])]
    return [slice(number * batch, (number + 1) * batch) for number in numbers]


def _token_counts(rows: Sequence[tuple[str, ...]], tokenizer, max_length: int) -> np.ndarray:
    """(N, V) real tokens of each view; a row of one sentence is two views of it."""
    sentences = [sentence for row in rows for sentence in row]
    encoded = tokenizer(sentences, truncation=True, max_length=max_length)["input_ids"]
    lengths = np.array([len(ids) for ids in encoded]).reshape(len(rows), -1)
    return lengths.repeat(2, axis=1) if lengths.shape[1] == 1 else lengths


def _our_model_settings(job: dict) -> dict:
    # Masking duplicates is set to what the other side does, so that the losses can be compared.
    return {
        "model_name_or_path": job["encoder"],
        "pooler_type": "avg",
        "max_seq_length": job["max_length"],
        "temperature": TEMPERATURE,
        "mask_duplicates": False,
    }


def _our_model(job: dict):
    from simcse_hf import ModelArguments
    from simcse_hf.starting_model import load_model

    set_seed(job["seed"])
    return load_model(ModelArguments(**_our_model_settings(job)))


def _our_dataset(rows: Sequence[tuple[str, ...]], tokenizer, job: dict):
    from simcse_hf import ViewsDataset

    return ViewsDataset.build(rows, tokenizer, max_length=job["max_length"])


def _our_arguments(job: dict, **more):
    from simcse_hf import SimCSETrainingArguments

    if job["gradient_cache"]:
        more["gradient_cache_tokens"] = job["gradient_cache"]
    return SimCSETrainingArguments(
        **_common_arguments(job), train_sampling_strategy="sequential", load_best_model_at_end=False, **more
    )


def _our_trainer(job: dict, model, tokenizer, dataset, clock: StepClock):
    from simcse_hf import SimCSETrainer

    return SimCSETrainer(
        model, _our_arguments(job), train_dataset=dataset, processing_class=tokenizer, callbacks=[clock]
    )


def _common_arguments(job: dict) -> dict:
    return {
        "output_dir": job["output"],
        "max_steps": job["steps"],
        "per_device_train_batch_size": job["batch"],
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0,
        "dataloader_drop_last": True,
        "dataloader_num_workers": job["dataloader_workers"],
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "seed": job["seed"],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": job["bf16"],
        "torch_compile": job["compile"],
        "disable_tqdm": True,
    }


def peer_attention(bf16: bool) -> str:
    """The fastest that is there; with flash attention, which takes no fp32, sentence-transformers computes no padding."""
    return "flash_attention_2" if bf16 and torch.cuda.is_available() and find_spec("flash_attn") else "sdpa"


def _peer_model(job: dict, dtype: torch.dtype = torch.float32):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    set_seed(job["seed"])
    transformer = Transformer(
        job["encoder"],
        max_seq_length=job["max_length"],
        model_kwargs={"attn_implementation": peer_attention(job["bf16"]), "dtype": dtype},
    )
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling])


def _peer_dataset(views: list[Sequence[str]]):
    from datasets import Dataset

    columns = views * 2 if len(views) == 1 else views
    return Dataset.from_dict(dict(zip(COLUMNS, columns, strict=False)))


def _peer_trainer(job: dict, model, dataset, clock: StepClock, **more):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    if job["gradient_cache"]:
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=PEER_MINI_BATCH)
    else:
        loss = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**_common_arguments(job), batch_sampler=_in_order),
        train_dataset=dataset,
        loss=loss,
        callbacks=[clock],
        **more,
    )


def _in_order(dataset, batch_size: int, drop_last: bool, **_):
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)


def _peer_features(transformer, ids, numbers: Sequence[int]) -> dict:
    """What `Transformer.preprocess` returns for sentences whose token ids are known."""
    tokens, offsets = ids["tokens"], ids["offsets"]
    sentences = [tokens[offsets[number] : offsets[number + 1]] for number in numbers]
    if transformer.can_flatten_inputs:
        features = transformer.data_collator([{"input_ids": sentence.tolist()} for sentence in sentences])
        features.pop("labels", None)
    else:
        lengths = np.array([len(sentence) for sentence in sentences])
        mask = np.arange(lengths.max()) < lengths[:, None]  # (N, T)
        input_ids = np.full(mask.shape, transformer.tokenizer.pad_token_id, dtype=np.int64)
        input_ids[mask] = np.concatenate(sentences)
        features = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
    return features | {"modality": "text"}


def _peak_mib() -> float:
    """Highest memory of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # ru_maxrss of a started process begins at the size of the process that started it; Linux's own mark does not.
    if sys.platform == "linux":
        return _memory_mib("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _memory_mib(field: str) -> float:
    """A line of /proc/self/status, which only Linux has."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":")) / 2**10


WORKERS = {
    "train": train,
    "encode": encode,
    "start": start,
    "tokenise": tokenise,
    "memory-corpus": memory_corpus,
    "gpu": gpu,
}
