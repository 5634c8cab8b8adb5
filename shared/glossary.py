"""The words that a newcomer meets, in two lines each, and the headings of tables on a terminal in a few words:
docs/glossary.md, the help of a report and the legends below tables are made from these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

GLOSSARY: dict[str, dict[str, str]] = {
    "Data": {
        "site": "A place in the language model where activations are read, such as `layer_08.resid_mid` or "
        "`layer_08.mlp_out`. A coder reads one site (the source) and predicts the same or another one (the target).",
        "row": "The activations of one token: one vector per site. Everything that the pipeline counts per token, "
        "it counts in rows.",
        "sequence": "`ctx` tokens that the model processes together, beginning with BOS if the cache has one. A cache "
        "stores whole ones.",
        "shard": "A part of the cache that holds whole sequences, with one file per site: the unit in which rows are "
        "written, verified and read.",
        "cache": "The folder that `pipeline harvest` writes: tokens, documents and activations as a Zarr group. It is "
        "harvested once and read by every training and analysis.",
        "BOS": "The token that begins a sequence (beginning of sequence). With packed text there can be one before "
        "every document; each of them counts as position 0. `harvest.bos: none` harvests without it.",
        "position 0": "The place of a sequence's first token, and of any BOS inside a sequence. The model's state "
        "after a BOS is one constant vector, so figures are given excluding position 0 and, beside that, including it.",
        "massive rows": "The few rows outside position 0 whose norm exceeds 3 times the median. They can hold a third "
        "of a site's variance, so figures have a twin without them. All other rows outside position 0 are ordinary.",
        "outlying dimension": "A dimension of a site whose root mean square over rows is at least 10 times the median "
        "dimension's. One alone can carry most of the variance, and then the FVU describes little else.",
        "held-out documents": "Documents that training never sees (`data.heldout` is their share). FVU, L0 and dead "
        "latents at the end of training are measured on them.",
    },
    "Coders": {
        "sparse coder": "A network that describes a vector by a few of many latents: encode to sparse codes, decode "
        "to a reconstruction. SAEs and transcoders are sparse coders.",
        "SAE": "Sparse autoencoder: a coder that reconstructs the site that it reads.",
        "transcoder": "A coder whose target is another site than its source, for example the output of an MLP "
        "predicted from its input.",
        "crosscoder": "A coder that reads and reconstructs several sites at once, or one site of two models, with one "
        "dictionary (Lindsey et al. 2024). `docs/crosscoders.md`.",
        "cross-layer transcoder": "A coder whose latents read one layer and write that layer's MLP output and those of "
        "all later layers (Ameisen et al. 2025). `docs/crosscoders.md`.",
        "relative norm": "Of a crosscoder over two sites: 0 for a latent whose decoder row lies in the first site "
        "alone, ½ for one of both alike, 1 for the second alone.",
        "latent": "One unit of a coder: an encoder row that decides when it fires, and a decoder row, the direction "
        "that it adds to the reconstruction. Also called a feature.",
        "code": "The activations of all latents on one row; most are 0. A latent *fires* on a row where its code is "
        "above 0.",
        "TopK": "A coder that keeps the k largest codes of every row (Gao et al. 2024).",
        "BatchTopK": "TopK over a batch: the k·B largest codes of B rows, so that a row may use more or fewer than k "
        "latents (Bussmann et al. 2024).",
        "JumpReLU": "A coder with a learned threshold per latent, below which its code is 0 (Rajamanoharan et al. "
        "2024).",
        "Gated": "A coder that decides by one path whether a latent fires and by another how strongly (Rajamanoharan "
        "et al. 2024).",
        "Matryoshka": "A coder whose first latents must reconstruct well on their own: its loss is the mean over "
        "nested prefixes of the dictionary (Bussmann et al. 2025).",
        "prefix": "The first m latents of a Matryoshka coder, used as a smaller coder.",
        "AuxK": "An auxiliary loss that revives dead latents: they reconstruct what the living ones leave as error.",
    },
    "Training": {
        "run": "One trained coder with its settings, metrics and checkpoints, in one folder below `runs/`.",
        "checkpoint": "The state of training on disk. A run that was interrupted resumes from it, bit-identical to an "
        "uninterrupted run.",
        "variant": "A named set of training settings in one YAML file, such as `topk` or `matryoshka-ortsae`: "
        "`pipeline train --variant NAME`.",
        "penalty": "A term added to the loss, for example against correlated latents. Each has a weight and logs "
        "metrics of its own.",
        "sampler": "The rule that chooses which rows are trained on, and in which order.",
        "monitor": "Measures a coder while it trains, at intervals: correlated pairs, position, latents in use.",
        "preset": "A whole set-up in one YAML file, harvest included, such as `gemma-2-2b-layer8`: `-c NAME` reads it.",
        "sweep": "Variants, a grid of settings and seeds, trained on one cache and compared in one table: "
        "`pipeline sweep FILE`.",
    },
    "Reports": {
        "FVU": "Fraction of variance unexplained: squared error of the reconstruction over the variance of the "
        "target. 0 is perfect; 1 is no better than the mean.",
        "L0": "Mean number of latents that fire on a row: how sparse the codes are.",
        "dead": "A latent that does not fire: for the last `dead_after` tokens in training, on any of the rows looked "
        "at in a report.",
        "ultra-dense": "A latent that fires on more than a tenth of the rows; such latents rarely mean one thing.",
        "duplicate pair": "Two latents that do the same: their codes correlate at r ≥ 0.8, or their decoder rows have "
        "cosine ≥ 0.8 and they fire together on at least half of the rows on which either fires.",
        "cluster": "Latents joined by duplicate pairs: a connected component of the graph of those pairs.",
        "specialised": "A latent whose firings share a token or a kind of document far more often than other rows of "
        "the text do.",
        "BOS-biased": "A latent with far more of its firings at position 0 than chance gives: over 20 % and over five "
        "times the share of rows there, q < 0.01.",
        "position-biased": "A latent that depends on position beyond position 0: most of its other firings are in one "
        "tenth of the sequence.",
        "null": "What chance alone gives for a figure: shuffled rows, random directions, circular shifts. A value near "
        "its null is not a finding.",
        "control": "A coder measured for comparison only: the same one before its first step, or one with a frozen "
        "random decoder.",
        "loss recovered": "How much of the language model's loss survives when the reconstruction replaces the "
        "activations. 100 %: the model does not notice; 0 %: as bad as deleting the site.",
        "sparse probing": "A classifier for a label from k latents only. It shows whether a concept lies in few "
        "latents; the dense probe beside it uses all dimensions of the activations.",
        "SCR": "Spurious correlation removal: a probe confuses two labels that always agree in its documents. The "
        "share of its error on one label that disappears with the other label's strongest latents at 0.",
        "TPP": "Targeted probe perturbation: with a class's strongest latents at 0, how much more accuracy its own "
        "probe loses than the probes of the other classes. Near 0: its latents serve all classes alike.",
        "meta-structure": "What the decoder rows of a coder have in common: the variance of them that a smaller coder "
        "of these rows explains (Leask et al. 2025).",
        "feature splitting": "Several latents share one label: a probe of more latents finds it better than a probe "
        "of one.",
        "absorption": "A latent fails to fire on some rows of its label because a more specific latent carries the "
        "label's direction there (Chanin et al. 2024).",
        "MMCS": "Mean largest cosine: for each latent of one coder the largest decoder cosine with any latent of "
        "another, averaged. 1: every latent has its twin.",
        "CKA": "Centred kernel alignment: likeness of two coders' codes on the same rows, from 0 (unrelated) to 1.",
    },
}
"""Section → term → text of at most 240 characters, with Markdown's backticks and emphasis and no other markup."""


COLUMNS = {
    "FVU": "share of the target's variance left unexplained",
    "held-out FVU": "share of variance unexplained, documents not trained on",
    "FVU, trained-on rows": "share of variance unexplained; nothing was held out",
    "batch FVU": "share of variance unexplained in the last batch",
    "FVU, all documents": "share of variance unexplained, training documents too",
    "per dim.": "mean of the FVU of each dimension: all count alike",
    "FVU per dim.": "mean of the FVU of each dimension: all count alike",
    "incl. pos. 0": "the figure before it, first tokens included",
    "excl. massive": "the figure before it, rows of huge norm excluded",
    "untrained": "FVU of the same coder before its first step",
    "averaged": "held-out FVU with averaged weights (train.ema)",
    "loss": "what training minimises",
    "L0": "latents that fire on a row, on average",
    "dead": "latents that did not fire",
    "pairs": "pairs of latents that fire alike",
    "pos. 0 in top": "of the strongest activations, how many at position 0",
    "distinct": "the same, each context counted once",
    "loss recovered": "of the model's loss, kept with the coder in its place",
    "export's FVU": "the same, of the exported weights",
    "export's L0": "the same, of the exported weights",
    "Δ code": "largest difference of a latent's activation",
    "Δ output": "largest difference of a reconstructed number",
    "seeds": "runs that differ in their seed alone",
    "part": "runs of one part train side by side",
    "balanced accuracy": "½ is chance; in brackets its 95 % interval",
    "detection": "is it told from the label in which windows it fires?",
    "fuzzing": "is it told from the label on which token it fires?",
    "own label": "the latent's own",
    "shuffled label": "control: another latent's",
    "random label": "control: of random windows",
    "FVU per dimension": "mean of the FVU of each dimension: all count alike",
    "cross-entropy of the model": "its loss on the next token, in nats",
    "cross-entropy with the coder": "the same, with the coder's output at its site",
    "cross-entropy with zero": "the same, with the site set to zero",
    "cross-entropy recovered": "1: as without the coder, 0: as with zero",
    "KL (nats)": "from the model's predictions to those with the coder",
    "pos": "place in the text; 0 is the first token",
    "latent": "a unit of the coder, by its number",
    "activation": "how strongly it fires, and as a bar",
    "fires on": "its label (explain), else its tokens (analyze)",
    "storage": "how numbers are stored",
    "width": "numbers in a row",
    "module": "of the model, read at its input (:in) or output (:out)",
    "source → target": "the site that it reads → the site that it predicts",
    "memory": "what it takes at most",
    "binds": "the resource that takes longest; others overlap",
}
"""Heading of a table on a terminal → a few words on it, which fit beside it into 80 columns. Plain words have none."""


def meaning_of(heading: str) -> str:
    """A few words on a heading; "" of a plain word."""
    return COLUMNS.get(heading, "")


def column_meanings(headings: Iterable[str], definitions: Mapping[str, str]) -> dict[str, str]:
    """Heading → its meaning, of the headings that have one here or else in `definitions`, each once."""
    found = {heading: COLUMNS.get(heading) or _first_sentence(definitions.get(heading, "")) for heading in headings}
    return {heading: text for heading, text in found.items() if text}


def _first_sentence(text: str) -> str:
    plain = re.sub(r"[`*]", "", text)
    return re.split(r"(?<=[a-z0-9)])\. ", plain)[0].removesuffix(".")


def terms() -> dict[str, str]:
    """Term → text as plain text, in the order of the page."""
    return {term: re.sub(r"[`*]", "", text) for section in GLOSSARY.values() for term, text in section.items()}


def terms_in(text: str) -> dict[str, str]:
    """The entries of the terms that a text uses, as whole words (or their plural)."""
    return {
        term: meaning
        for term, meaning in terms().items()
        if re.search(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", text, re.IGNORECASE if term.islower() else 0)
    }


def glossary_page() -> str:
    """docs/glossary.md."""
    parts = ["# Glossary", "Two lines for each word that a newcomer meets. A report explains the ones that it uses."]
    for section, entries in GLOSSARY.items():
        parts.append(f"## {section}")
        parts += [f"### {term}\n\n{text}" for term, text in entries.items()]
    parts.append("## Headings of tables on a terminal")
    parts.append("\n".join(["| heading | meaning |", "|---|---|", *(f"| {k} | {v} |" for k, v in COLUMNS.items())]))
    return "\n\n".join(parts) + "\n"
