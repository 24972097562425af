"""Tiny captioners with random weights, saved as their authors save real ones."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

WORDS = "a small large red green blue square circle star cross above below"
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS.split()]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def save_blip2(folder: Path) -> None:
    """A BLIP-2 of 32 px images with an OPT of a few words."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    processor = Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4)
    words = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(image_size=32, patch_size=16, **TINY).to_dict(),
        qformer_config=Blip2QFormerConfig(vocab_size=8, encoder_hidden_size=32, **TINY).to_dict(),
        text_config=OPTConfig(
            ffn_dim=32, word_embed_proj_dim=32, max_position_embeddings=64, init_std=0.5, **TINY, **words
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.5,
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def save_encoder_decoder(folder: Path) -> None:
    """A ViT that a BERT decodes: two models without a processor of their own."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    decoder = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.5, **TINY)
    vision = ViTConfig(image_size=32, patch_size=16, initializer_range=0.5, **TINY)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
