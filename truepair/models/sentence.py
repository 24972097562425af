"""Sentence encoders from a folder as sentence-transformers saves it; that package itself is not needed."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from truepair.errors import UserError, reason
from truepair.models.dual import UNUSABLE
from truepair.pairs.text import MAX_CHARACTERS

POOLINGS = ("mean", "cls")


class SentenceEncoder(nn.Module):
    """A transformer and a pooling of its tokens.

    Attributes:
        name: "sentence-transformers:FOLDER". max_length: tokens at most. pooling: "mean" or "cls".
        lower: texts are lowercased first. prompt: put before every text ("" for most models).
    """

    def __init__(
        self,
        transformer: nn.Module,
        tokenizer: Any,
        name: str,
        *,
        pooling: str,
        max_length: int,
        lower: bool = False,
        prompt: str = "",
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.name = name
        self.pooling, self.max_length, self.lower, self.prompt = pooling, max_length, lower, prompt

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.transformer.parameters()).device

    def tokenize(self, texts: list[str]) -> Tensor:
        """(n, L) int64 token ids on the CPU, padded at the right to the longest text."""
        texts = [self.prompt + text[:MAX_CHARACTERS].strip() for text in texts]
        texts = [text.lower() for text in texts] if self.lower else texts
        how = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(texts, **how)["input_ids"]
        return ids

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) token ids -> (n, D) float32 unit rows."""
        mask = (tokens != self.tokenizer.pad_token_id).long()
        hidden: Tensor = self.transformer(input_ids=tokens, attention_mask=mask).last_hidden_state  # (n, L, D)
        if self.pooling == "cls":
            return F.normalize(hidden[:, 0].float(), dim=-1)
        weights = mask[:, :, None].float()
        return F.normalize((hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


def open_sentence_encoder(folder: Path) -> SentenceEncoder:
    """The encoder in `folder`: modules.json, config.json, model.safetensors, a tokenizer, 1_Pooling/config.json.

    Nothing is downloaded, no code of the folder is run. Raises UserError without the extra `hf`, for a folder that is
    not one or cannot be loaded, and for modules other than a transformer, mean or cls pooling, and normalisation.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging
    except ImportError:
        raise UserError("sentence-transformers:FOLDER needs: pip install 'truepair[hf]'") from None

    if not (folder / "modules.json").is_file():
        raise UserError(f"{folder} is no sentence-transformers folder (no modules.json there)")
    modules = {str(module["type"]).rpartition(".")[2]: folder / module["path"] for module in _modules(folder)}
    if unknown := set(modules) - {"Transformer", "Pooling", "Normalize"}:
        raise UserError(f"{folder} has modules that cannot be used here: {', '.join(sorted(unknown))}")
    if "Transformer" not in modules or "Pooling" not in modules:
        raise UserError(f"{folder / 'modules.json'} names no Transformer and Pooling")
    pooling = _pooling(modules["Pooling"] / "config.json")
    path = modules["Transformer"]
    bert = _read(path / "sentence_bert_config.json")
    prompts = _read(folder / "config_sentence_transformers.json")
    logging: Any = transformers_logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        transformer = AutoModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).float()
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except UNUSABLE as error:
        raise UserError(f"sentence encoder {folder} cannot be loaded: {reason(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if transformer.config.is_encoder_decoder or tokenizer.pad_token_id is None:
        raise UserError(f"{folder} holds a {transformer.config.model_type} model; an encoder that pads is needed")
    tokenizer.padding_side = "right"
    positions = getattr(transformer.config, "max_position_embeddings", 512)
    longest = min(bert.get("max_seq_length") or tokenizer.model_max_length, tokenizer.model_max_length, positions)
    return SentenceEncoder(
        transformer,
        tokenizer,
        f"sentence-transformers:{folder}",
        pooling=pooling,
        max_length=int(longest),
        lower=bool(bert.get("do_lower_case")),
        prompt=str((prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or ""),
    ).eval()


def _modules(folder: Path) -> list[dict[str, Any]]:
    modules = _json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules):
        raise UserError(f"{folder / 'modules.json'} is not a list of modules, each with a type and a path")
    outside = [m["path"] for m in modules if not (folder / m["path"]).resolve().is_relative_to(folder.resolve())]
    if outside:
        raise UserError(f"{folder / 'modules.json'} names a path outside the folder: {outside[0]}")
    return modules


def _pooling(file: Path) -> str:
    config = _json(file)
    flags = {name.removeprefix("pooling_mode_"): on for name, on in config.items() if name.startswith("pooling_mode_")}
    chosen = config.get("pooling_mode") or [name for name, on in flags.items() if on is True]
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    short = [str(name).removesuffix("_token").removesuffix("_tokens") for name in names]
    if len(short) != 1 or short[0] not in POOLINGS:
        raise UserError(f"{file} asks for pooling {' + '.join(names) or 'of no kind'}; known are {', '.join(POOLINGS)}")
    return short[0]


def _read(file: Path) -> dict[str, Any]:
    return dict(_json(file)) if file.is_file() else {}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
