"""A judge on this machine: a causal language model, run by `transformers`. It answers greedily, so repeatably."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...models.checkpoint import find_checkpoint, fingerprint
from ...models.loading import load_model
from ...models.tokenizer import load_tokenizer
from ...shared.errors import UsageError
from .answers import Answer
from .chat import ChatJudge, Keep, Prompt
from .configs import LocalConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Settings:
    """How the model is loaded (models.checkpoint.ModelSettings)."""

    model_revision: str | None = None
    attention = "auto"
    ctx = 1

    def __init__(self, config: LocalConfig, device: str) -> None:
        self.model, self.dtype, self.device = config.model, config.dtype, device


class LocalJudge(ChatJudge):
    """A language model on this machine.

    Args:
        config: its settings.
        answers: the file of answers.
        device: where it runs: cpu, cuda, or auto.

    Raises:
        UsageError: no model is named, or it was not found.
    """

    config: LocalConfig

    def __init__(
        self, config: LocalConfig, answers: Path | None = None, *, device: str = "auto", **others: object
    ) -> None:
        if not config.model:
            raise UsageError("explain.judge.model: no checkpoint is named", "--set explain.judge.model=FOLDER")
        super().__init__(config, answers)
        self.name = Path(config.model).name
        self.checkpoint = find_checkpoint(_Settings(config, device), "explain.judge.model", "explain.device")
        self.fingerprint = fingerprint(self.checkpoint)

    @cached_property
    def model(self) -> Any:
        """The model, loaded with the first prompt."""
        return load_model(self.checkpoint, self.config.model).to(self.checkpoint.device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(self.checkpoint, self.config.model)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def settings_of(self, prompt: Prompt) -> dict[str, Any]:
        model = self.fingerprint or self.checkpoint.revision or self.config.model
        return {"model": model, "messages": prompt.messages, "max_new_tokens": prompt.limit}

    def complete(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        order = sorted(range(len(prompts)), key=lambda i: (prompts[i].limit, prompts[i].tokens))
        for start in range(0, len(order), self.config.prompts):
            numbers = order[start : start + self.config.prompts]
            self.asked += len(numbers)
            for number, answer in zip(numbers, self._generated([prompts[i] for i in numbers]), strict=True):
                keep(number, answer)

    def _generated(self, prompts: Sequence[Prompt]) -> list[Answer]:
        limit = max(prompt.limit for prompt in prompts)
        texts = [self._text(prompt) for prompt in prompts]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and inputs["input_ids"].shape[1] + limit > longest:
            raise UsageError(
                f"a prompt of {inputs['input_ids'].shape[1]} tokens and {limit} of its answer are more than the "
                f"{longest} that {self.name} takes",
                "--set explain.learn=10 --set explain.learn_silent=5 --set explain.judge.batch=2, or another model",
            )
        inputs = {name: value.to(self.model.device) for name, value in inputs.items() if name != "token_type_ids"}
        with torch.inference_mode():
            out = self.model.generate(
                **inputs, max_new_tokens=limit, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        read = inputs["attention_mask"].sum(1).tolist()
        written = (new != self.tokenizer.pad_token_id).sum(1).tolist()
        decoded = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Answer(text, int(a), int(b)) for text, a, b in zip(decoded, read, written, strict=True)]

    def _text(self, prompt: Prompt) -> str:
        """The prompt in the model's chat template; without one, as plain text."""
        if self.tokenizer.chat_template is not None:
            text: str = self.tokenizer.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
            return text
        return "\n\n".join(one["content"] for one in prompt.messages) + "\n\nAnswer:"
