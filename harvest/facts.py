"""Models whose config.json ships with the package: a harvest of them is planned without their checkpoint.

`shared/presets/models/NAME.json` holds `model`, the hub name, and `config`, the facts of its config.json that decide
shapes, cost and special tokens. A harvest itself always reads the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.checkpoint import ModelCheckpoint, settled
from ..models.tokenizer import Specials
from ..shared.config.settings import PRESETS
from ..shared.errors import UsageError
from .config import HarvestConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MODELS = PRESETS / "models"
_NEEDED = ("config.json", "tokenizer.json")


def packaged_models(folder: Path = MODELS) -> dict[str, dict[str, Any]]:
    """Hub name → facts of its config.json, for every model that ships with the package."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {document["model"]: document["config"] for document in documents}


def facts_needed(config: HarvestConfig) -> dict[str, Any] | None:
    """The packaged facts of the config's model if its checkpoint is not on this machine; None if it is, or if no facts
    of the model are packaged. Asks no network."""
    if Path(config.model).expanduser().exists():
        return None
    facts = packaged_models().get(config.model)
    return None if facts is None or _on_this_machine(config) else facts


def checkpoint_from(facts: dict[str, Any], config: HarvestConfig) -> ModelCheckpoint:
    """What `find_checkpoint` finds, from packaged facts; the commit of the model is not known.

    Raises:
        UsageError: ctx is longer than the model's context, or the device was not found.
    """
    return settled(config, config.model, _model_config(facts), None)


def specials_from(facts: dict[str, Any], config: HarvestConfig) -> Specials:
    """The ids that packing needs, as config.json states them.

    Raises:
        UsageError: `harvest.bos` names a token, which only the tokenizer knows.
    """
    if config.bos not in ("auto", "none"):
        raise UsageError(
            f"harvest.bos: the id of {config.bos!r} requires the tokenizer of {config.model}; it was not found on this "
            "machine",
            hint="--set harvest.bos=auto, or harvest.model=FOLDER with the checkpoint",
        )
    bos = int(facts["bos_token_id"]) if config.bos == "auto" else None
    return Specials(bos, int(facts["eos_token_id"]), int(facts["pad_token_id"]))


def refuse_counting(config: HarvestConfig) -> None:
    """Refuses a plan that depends on the dataset's length. Raises UsageError: counting needs the tokenizer."""
    if config.tokens is None:
        raise UsageError(
            f"harvest.tokens: null counts the dataset, which requires the tokenizer of {config.model}; it was not "
            "found on this machine",
            hint="--set harvest.tokens=5000000, or harvest.model=FOLDER with the checkpoint",
        )


def _model_config(facts: dict[str, Any]) -> PreTrainedConfig:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found: PreTrainedConfig = CONFIG_MAPPING[facts["model_type"]].from_dict(dict(facts))
    return found


def _on_this_machine(config: HarvestConfig) -> bool:
    """Whether the hub's local cache holds the files that a plan reads."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(config.model, name, revision=config.model_revision) for name in _NEEDED)
    return all(isinstance(path, str) for path in found)
