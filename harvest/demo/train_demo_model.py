"""Train the demo model: a small language model of the Gemma-2 architecture on the text of this Python installation.

    python -m sparse_pipeline.harvest.demo.train_demo_model

Writes config.json, model.safetensors (bfloat16), the tokenizer and README.md to ``harvest/demo/model``. The validation
loss in it is that of the saved checkpoint, loaded with ``from_pretrained``, on modules and topics that neither the
tokenizer nor the model has seen.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import platform
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.documents import Document
from .corpus import documents, group_of

if TYPE_CHECKING:
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

MODEL_DIR = Path(__file__).parent / "model"
CTX = 128
VOCAB = 4096
PAD, EOS, BOS, UNK = range(4)
_HELD_OUT_ONE_IN = 24


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, except the text."""

    epochs: float = 7.0
    batch: int = 32
    lr: float = 5e-3
    lr_end: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.3
    clip: float = 1.0
    seed: int = 0
    eval_every: int = 250


def is_held_out(document: Document) -> bool:
    """Whole modules and topics are held out, chosen by a hash of their name: the same ones on every Python version."""
    return zlib.crc32(group_of(document).encode()) % _HELD_OUT_ONE_IN == 0


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 4096 entries that puts ``<bos>`` before every text, as Gemma's tokenizer does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def model_config() -> Gemma2Config:
    """4 layers of width 128; the window of the alternating layers is half the context, so that it is felt."""
    from transformers import Gemma2Config

    return Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=256,
        sliding_window=CTX // 2,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        attn_implementation="eager",
    )


def pack(tokenizer: PreTrainedTokenizerFast, docs: list[Document]) -> np.ndarray:
    """Concatenate the documents, an EOS after each, into int64 [n_seq, CTX] with BOS first; the tail is dropped."""
    encoded = tokenizer([doc.text for doc in docs], add_special_tokens=False, verbose=False)["input_ids"]
    stream = np.array([token for ids in encoded for token in (*ids, EOS)], dtype=np.int64)
    body = CTX - 1
    stream = stream[: len(stream) // body * body].reshape(-1, body)
    return np.concatenate([np.full((len(stream), 1), BOS, dtype=np.int64), stream], axis=1)


@torch.inference_mode()
def mean_loss(model: Gemma2ForCausalLM, sequences: np.ndarray, batch: int = 64) -> float:
    """Mean next-token loss in nats over all predicted tokens of int64 [n, CTX] sequences."""
    losses = [
        float(_loss(model, torch.from_numpy(sequences[i : i + batch]))) * len(sequences[i : i + batch])
        for i in range(0, len(sequences), batch)
    ]
    return sum(losses) / len(sequences)


def _loss(model: Gemma2ForCausalLM, ids: torch.Tensor, *, autocast: bool = False) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB).float(), ids[:, 1:].reshape(-1))


def train(recipe: Recipe, sequences: np.ndarray, held_out: np.ndarray, max_minutes: float) -> Gemma2ForCausalLM:
    """AdamW with linear warm-up and cosine decay; every epoch sees the sequences in a new order."""
    from transformers import Gemma2ForCausalLM

    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = Gemma2ForCausalLM(model_config())
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-8)
    steps = int(recipe.epochs * len(sequences)) // recipe.batch

    def factor(step: int) -> float:
        if step < recipe.warmup_steps:
            return (step + 1) / recipe.warmup_steps
        progress = (step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
        return recipe.lr_end + (1 - recipe.lr_end) * 0.5 * (1 + math.cos(math.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order = np.concatenate([rng.permutation(len(sequences)) for _ in range(math.ceil(recipe.epochs))])
    start = time.perf_counter()
    for step in range(steps):
        ids = torch.from_numpy(sequences[order[step * recipe.batch : (step + 1) * recipe.batch]])
        loss = _loss(model, ids, autocast=True)  # measured: 22.9 against 10.8 ktok/s, on a processor with avx512_bf16
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        seconds = time.perf_counter() - start
        if seconds > 60 * max_minutes:
            raise SystemExit(f"stopped at step {step} of {steps}: over {max_minutes} minutes; lower --epochs")
        if (step + 1) % recipe.eval_every == 0 or step + 1 == steps:
            rate = (step + 1) * recipe.batch * CTX / seconds
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.3f}  held out {mean_loss(model, held_out[:128]):.3f}  "
                f"{rate / 1000:.1f} ktok/s  {seconds:.0f} s",
                flush=True,
            )
    return model


def measure_saved(folder: Path, docs: list[Document]) -> tuple[float, int]:
    """(loss in nats, predicted tokens) of the checkpoint in ``folder`` on documents, computed in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    sequences = pack(tokenizer, docs)
    return mean_loss(model, sequences), sequences.shape[0] * (CTX - 1)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: returning and faulting in the logits' 67 MB each step halves the speed."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((-1, 2**31 - 1), (-2, 2**28), (-3, 2**30)):  # TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD
            libc.mallopt(option, value)


_README = """\
# The demo model

A language model of the Gemma-2 architecture with {parameters:,} parameters (4 layers, width 128, vocabulary {vocab:,}),
small enough to ship and to run on two cores, trained on the help topics and the docstrings of the standard library of
Python {python}.

| | |
|---|---|
| training text | {documents:,} documents, {corpus_tokens:,} tokens, {epochs:g} epochs: {trained_tokens:,} tokens seen |
| held out | {held_out_documents:,} documents (whole modules and topics), {held_out_tokens:,} predicted tokens |
| validation loss of this bfloat16 checkpoint | **{loss:.3f} nats** per token |
| loss of a uniform guess, ln(vocabulary) | {uniform:.3f} nats |
| training time | {minutes:.1f} minutes, {threads} threads of a CPU, PyTorch {torch} |

Made by:

    {command}

The validation loss was measured by that script after loading this folder again with
`AutoModelForCausalLM.from_pretrained`, on sequences of {ctx} tokens with BOS first.

The training text is part of the Python distribution, copyright the Python Software Foundation and the authors of the
modules, under the PSF License Version 2. It is not contained in this repository. The weights are released under this
repository's licence.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model on the text of this Python installation.")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write (default: the shipped one)")
    parser.add_argument("--epochs", type=float, default=Recipe.epochs)
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument("--max-minutes", type=float, default=20.0, help="give up, writing nothing, after this long")
    arguments = parser.parse_args()
    recipe = Recipe(epochs=arguments.epochs, lr=arguments.lr)
    torch.set_num_threads(2)  # two, whatever the machine: the sums, and so the weights, depend on it

    keep_freed_memory()
    started = time.perf_counter()
    all_documents = list(documents())
    training = [doc for doc in all_documents if not is_held_out(doc)]
    held_out = [doc for doc in all_documents if is_held_out(doc)]
    tokenizer = train_tokenizer(doc.text for doc in training)
    sequences, held_out_sequences = pack(tokenizer, training), pack(tokenizer, held_out)
    print(
        f"{len(training)} documents, {sequences.size:,} tokens; held out {len(held_out)}, {held_out_sequences.size:,}"
    )
    model = train(recipe, sequences, held_out_sequences, arguments.max_minutes)

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(out)
    loss, predicted = measure_saved(out, held_out)
    steps = int(recipe.epochs * len(sequences)) // recipe.batch
    command = f"python -m sparse_pipeline.harvest.demo.train_demo_model --epochs {recipe.epochs:g} --lr {recipe.lr:g}"
    text = _README.format(
        parameters=sum(p.numel() for p in model.parameters()),
        vocab=VOCAB,
        python=platform.python_version(),
        documents=len(training),
        corpus_tokens=sequences.size,
        epochs=recipe.epochs,
        trained_tokens=steps * recipe.batch * CTX,
        held_out_documents=len(held_out),
        held_out_tokens=predicted,
        loss=loss,
        uniform=math.log(VOCAB),
        minutes=(time.perf_counter() - started) / 60,
        threads=torch.get_num_threads(),
        torch=torch.__version__.partition("+")[0],
        command=command,
        ctx=CTX,
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    print(
        f"validation loss of the saved checkpoint: {loss:.3f} nats; ln(vocabulary) {math.log(VOCAB):.3f}; wrote {out}"
    )


if __name__ == "__main__":
    main()
