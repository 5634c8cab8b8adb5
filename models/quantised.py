"""Checkpoints whose weights are stored in fewer bits (8-bit, 4-bit, FP8): what they are, and whether they load here.

`transformers` loads them by the checkpoint's own `quantization_config`. What needs a package or a GPU that is not here
is refused by name before a weight is read; FP8 checkpoints are dequantised where no GPU computes in FP8.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch

from ..shared.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def quantisation(config: PreTrainedConfig) -> dict[str, Any] | None:
    """What a manifest says of a quantised checkpoint: `quant_method` and its plain settings; None for any other."""
    found = getattr(config, "quantization_config", None)
    found = found if found is not None else getattr(config.get_text_config(), "quantization_config", None)
    if found is None:
        return None
    settings = dict(found) if isinstance(found, dict) else found.to_dict()
    method = getattr(settings.get("quant_method"), "value", settings.get("quant_method"))
    plain = {key: value for key, value in settings.items() if isinstance(value, (str, int, float, bool, list))}
    return {**{key: value for key, value in plain.items() if not _long(value)}, "quant_method": str(method)}


def _long(value: object) -> bool:
    return isinstance(value, list) and (len(value) > 8 or not all(isinstance(one, (str, int, float)) for one in value))


def refuse_unloadable(config: PreTrainedConfig, name: str, setting: str, dtype: torch.dtype) -> None:
    """Asks `transformers` whether it can load a quantised checkpoint here; reads no weight.

    Raises:
        UsageError: the method is not known, or a package or a GPU is missing.
    """
    facts = quantisation(config)
    if facts is None:
        return
    from transformers.quantizers import AutoHfQuantizer

    own = getattr(config, "quantization_config", None) or config.get_text_config().quantization_config
    method = facts["quant_method"]
    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(own), pre_quantized=True)
        quantizer.validate_environment(device_map=None, dtype=dtype, weights_only=True)
    except (ImportError, RuntimeError, NotImplementedError, ValueError, KeyError, AttributeError, TypeError) as error:
        text = " ".join(str(error).split())
        package = re.search(r"pip install (?:-U |--upgrade )?([\w.\[\],-]+)", text)
        if not package and re.search(r"GPU|CUDA|cuda|XPU", text):
            cure = "run the harvest on a machine with one, or harvest the model's unquantised checkpoint"
        else:
            cure = f"pip install {package[1]}" if package else "harvest the model's unquantised checkpoint"
        raise UsageError(
            f"{setting}: {name} is quantised by {method}, which cannot be loaded here: {text[:300]}", cure
        ) from None
