"""The latents that fire on a text, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.capture import SiteReader
from ..models.held import body_of, names_of, rooted, sites_of
from ..models.text import encode
from ..models.tokenizer import special_tokens
from ..shared.cache.vocabulary import Vocabulary
from ..shared.coders import Coder
from ..shared.coders.one_site import require_one_site
from ..shared.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reading:
    """A text as a coder sees it: BOS, then its tokens.

    Attributes:
        token_ids: [T].
        tokens: text of each token, including its leading space.
        latents, activations: of each token, its firing latents, the strongest first.
        n_latents: F.
        bos: it begins with BOS; if not, position 0 is the text's first token.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    latents: tuple[tuple[int, ...], ...]
    activations: tuple[tuple[float, ...], ...]
    n_latents: int
    bos: bool = True

    def fired(self, position: int) -> list[tuple[int, float]]:
        """The latents that fire on a token and their activations, the strongest first."""
        return list(zip(self.latents[position], self.activations[position], strict=True))

    def strongest(self, n: int) -> list[int]:
        """The n latents with the largest activation, excluding position 0."""
        best: dict[int, float] = {}
        for fired, values in zip(self.latents[1:], self.activations[1:], strict=True):
            for latent, value in zip(fired, values, strict=True):
                best[latent] = max(value, best.get(latent, 0.0))
        return sorted(best, key=lambda latent: (-best[latent], latent))[:n]

    def of_latent(self, latent: int) -> list[float]:
        """A latent's activation at every token, [T]."""
        return [
            dict(zip(fired, values, strict=True)).get(latent, 0.0)
            for fired, values in zip(self.latents, self.activations, strict=True)
        ]

    def frame(self, k: int | None = None, labels: dict[int, str] | None = None) -> pd.DataFrame:
        """One row for each token and firing latent, at most k latents for each token; the strongest first.

        Columns: position, token_id, token, latent, activation, position_0 (bool), and label where there are labels.
        """
        import pandas as pd

        rows: list[tuple[Any, ...]] = [
            (position, self.token_ids[position], self.tokens[position], latent, value, position == 0)
            for position in range(len(self.tokens))
            for latent, value in self.fired(position)[:k]
        ]
        columns = ["position", "token_id", "token", "latent", "activation", "position_0"]
        frame = pd.DataFrame(rows, columns=columns)
        if labels is not None:
            frame["label"] = [labels.get(latent, "") for latent in frame["latent"]]
        return frame


def read_text(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    coder: Coder,
    text: str,
    source: str | None = None,
    bos: str = "auto",
) -> Reading:
    """Runs the model on a text, as a harvest would, up to the coder's source, and encodes every token.

    Args:
        model: of `transformers`.
        tokenizer: of the model.
        coder: moved to no device: its input comes to it.
        source: site that it reads; None: the one it was trained on.
        bos: what the text begins with, as `harvest.bos`.

    Raises:
        UsageError: the text is empty or longer than the model's context, or the coder does not fit the site.
    """
    require_one_site(coder, "reading a text")
    name = source or coder.source or names_of(coder, None, None)[0]
    (site,) = sites_of(model, name)
    ids = _ids(model, tokenizer, text, bos)
    held: list[Tensor] = []
    batch = torch.tensor([ids], device=next(model.parameters()).device)
    with SiteReader(rooted(model), body_of(model), [site]) as reader:
        reader.read(batch, None, lambda _, value: held.append(value[0].clone()))
    x = held[0].to(coder.w_enc.device)
    if x.shape[-1] != coder.d_in:
        raise UsageError(f"{name} has width {x.shape[-1]} in this model, the coder expects {coder.d_in}")
    with torch.inference_mode():
        entries = coder.encode(x).entries()
    fired: list[list[tuple[float, int]]] = [[] for _ in ids]
    for row, latent, value in zip(entries.row.tolist(), entries.latent.tolist(), entries.value.tolist(), strict=True):
        fired[row].append((-value, latent))
    ordered = [sorted(some) for some in fired]
    return Reading(
        tuple(ids),
        tuple(_pieces(tokenizer, ids)),
        tuple(tuple(latent for _, latent in some) for some in ordered),
        tuple(tuple(-value for value, _ in some) for some in ordered),
        coder.n_latents,
        bos=len(ids) > len(encode(tokenizer, [text])["input_ids"][0]),
    )


def _ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, text: str, bos: str) -> list[int]:
    """BOS and the tokens of the text, as a harvest begins a sequence."""
    found: list[int] = list(encode(tokenizer, [text])["input_ids"][0])
    if not found:
        raise UsageError(
            "the text is empty: found no token in it", "pipeline ask RUN TEXT   (- reads the text from stdin)"
        )
    config: Any = model.config.get_text_config()  # type: ignore[operator,union-attr]
    begin = special_tokens(
        tokenizer, type(tokenizer).__name__, vocabulary=int(config.vocab_size), bos=bos, separator="none"
    ).bos
    ids = found if begin is None else [begin, *found]
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and len(ids) > longest:
        raise UsageError(
            f"the text has {len(ids)} tokens including BOS, the model takes at most {longest}", "give a shorter text"
        )
    return ids


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    return Vocabulary(None, getattr(tokenizer, "backend_tokenizer", None)).pieces(ids)
