"""transformers, PyTorch -> the backbones of keras_hub (Keras 3). The truth is that native outputs are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from hf_flax import take_in_order
from pairs import Pair, apart, ids, noisy_torch

import multiparam as mp

TITLE = "transformers, PyTorch → keras_hub (Keras 3)"
NEEDS = ("torch", "tensorflow", "keras", "transformers", "keras_hub")

WORDS = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
TEXT, TYPED = ("token_ids", "padding_mask"), ("token_ids", "segment_ids", "padding_mask")
ENCODER = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
           "intermediate_size": 37, "max_position_embeddings": 64}  # fmt: skip
BACKBONE = {"vocabulary_size": 99, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 37,
            "max_sequence_length": 64}  # fmt: skip
DECODER = {**ENCODER, "num_key_value_heads": 2}
GROUPED = {"vocabulary_size": 99, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 32,
           "intermediate_dim": 37, "rope_max_wavelength": 10000, "layer_norm_epsilon": 1e-6}  # fmt: skip

# name -> PyTorch's class, its configuration, keras_hub's class, its arguments, its inputs
MODELS: dict[str, tuple[str, dict, str, dict, tuple[str, ...]]] = {
    "bert": ("BertModel", ENCODER, "BertBackbone", BACKBONE, TYPED),
    "distilbert": (
        "DistilBertModel",
        {"vocab_size": 99, "dim": 32, "hidden_dim": 37, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
        "DistilBertBackbone", BACKBONE, TEXT,
    ),
    "roberta": ("RobertaModel", {**ENCODER, "max_position_embeddings": 66}, "RobertaBackbone", BACKBONE, TEXT),
    "albert": (
        "AlbertModel", {**ENCODER, "embedding_size": 16}, "AlbertBackbone", {**BACKBONE, "embedding_dim": 16}, TYPED,
    ),
    "gpt2": (
        "GPT2Model", {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 37},
        "GPT2Backbone", BACKBONE, TEXT,
    ),
    "opt": (
        "OPTModel",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 37,
         "max_position_embeddings": 64, "word_embed_proj_dim": 32},
        "OPTBackbone", BACKBONE, TEXT,
    ),
    "bloom": (
        "BloomModel", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "BloomBackbone",
        {"vocabulary_size": 99, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 128}, TEXT,
    ),
    "llama": ("LlamaModel", DECODER, "LlamaBackbone", GROUPED, TEXT),
    "mistral": ("MistralModel", {**DECODER, "sliding_window": 64}, "MistralBackbone",
                {**GROUPED, "sliding_window": 64}, TEXT),
    "electra": ("ElectraModel", {**ENCODER, "embedding_size": 32}, "ElectraBackbone",
                {**{("vocab_size" if k == "vocabulary_size" else k): v for k, v in BACKBONE.items()},
                 "embedding_dim": 32}, TYPED),
    "xlm_roberta": ("XLMRobertaModel", {**ENCODER, "max_position_embeddings": 66}, "XLMRobertaBackbone", BACKBONE,
                    TEXT),
}  # fmt: skip
RECORDED = ("bert", "gpt2", "llama")


def names() -> list[str]:
    """The architectures."""
    return list(MODELS)


def make(name: str) -> Pair:
    """A pair by its architecture's name."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls_name, sizes, backbone, arguments, given = MODELS[name]
    cls = getattr(transformers, cls_name)
    config = cls.config_class(**sizes)
    config._attn_implementation, config.use_cache = "eager", False
    native = noisy_torch(cls(config))
    take_in_order(native, [WORDS[word] for word in given])
    made = {
        "token_ids": ids((2, 8)),
        "padding_mask": np.ones((2, 8), np.int32),
        "segment_ids": np.zeros((2, 8), np.int32),
    }
    inputs = tuple(made[word] for word in given)
    with torch.no_grad():
        outputs = native(*map(torch.from_numpy, inputs))

    def judge(net: mp.Model) -> str:
        return apart(outputs, net.native(list(inputs), training=False))

    source = mp.wrap(native)
    return Pair(source, lambda: mp.wrap(model_of(backbone, arguments, given)), judge, inputs)


def model_of(backbone: str, arguments: dict[str, Any], given: tuple[str, ...]) -> Any:
    """A backbone as a model that takes its inputs in a list."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(1)
    made = getattr(keras_hub.models, backbone)(**arguments)
    output = made.output["sequence_output"] if isinstance(made.output, dict) else made.output
    return keras.Model([made.input[word] for word in given], output)
