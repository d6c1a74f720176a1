"""transformers, PyTorch -> its Flax twin. The truth is transformers' own converter, bit for bit."""

from __future__ import annotations

import inspect
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from pairs import Pair, ids, noisy_torch, unequal

import multiparam as mp
from multiparam.core.group import store_of

TITLE = "transformers, PyTorch → Flax"
NEEDS = ("torch", "flax", "transformers")

# Sizes by the names that configurations give them; each takes those it has.
SMALL = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
    "num_key_value_heads": 2, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 37,
    "num_layers": 2, "num_heads": 4, "d_kv": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "dim": 32, "hidden_dim": 37,
    "n_layers": 2, "n_heads": 4, "embedding_size": 16, "ffn_dim": 37, "attention_heads": 4, "image_size": 16,
    "patch_size": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "rotary_dim": 4, "n_positions": 64,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "num_mel_bins": 8, "max_source_positions": 20,
    "max_target_positions": 20, "feed_forward_proj": "relu",
}  # fmt: skip
CONVOLUTIONAL = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "ResNet": CONVOLUTIONAL,
    "RegNet": CONVOLUTIONAL,
    "ConvNext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "patch_size": 2},
    "Segformer": {
        "num_encoder_blocks": 2, "hidden_sizes": [8, 16], "depths": [1, 1], "sr_ratios": [2, 1],
        "num_attention_heads": [1, 2], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2],
    },
    "Swin": {
        "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 16, "patch_size": 2,
    },
    "Flaubert": {"emb_dim": 32},
    "XLM": {"emb_dim": 32},
    "XLMRoberta": {},
    "XLNet": {"d_inner": 37},
    "CTRL": {"dff": 37},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "BigBird": {"attention_type": "original_full"},
    "Wav2Vec2": {
        "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_dim": [8, 8], "conv_kernel": [3, 3],
        "conv_stride": [2, 2], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2, "codevector_dim": 8, "proj_codevector_dim": 8,
        "num_codevectors_per_group": 4, "hidden_act": "gelu",
    },
    "Marian": {"decoder_start_token_id": 1},
    "RoFormer": {"embedding_size": 32},
    "CLIP": {},
}  # fmt: skip
# Families of which only what stands there is taken
WHOLE = ("ResNet", "RegNet", "ConvNext", "Segformer", "Swin")

NAMES = """
AlbertModel AlbertForMaskedLM BartModel BartForConditionalGeneration BeitModel BertModel BertForMaskedLM
BertForPreTraining BertForSequenceClassification BertForTokenClassification BigBirdModel BigBirdForMaskedLM
BlenderbotModel BlenderbotSmallModel BloomModel BloomForCausalLM CLIPModel CLIPTextModel CLIPVisionModel Dinov2Model
Dinov2ForImageClassification DistilBertModel DistilBertForMaskedLM ElectraModel ElectraForPreTraining GPT2Model
GPT2LMHeadModel GPTJModel GPTJForCausalLM GPTNeoModel GPTNeoForCausalLM GemmaModel GemmaForCausalLM LlamaModel
LlamaForCausalLM LongT5Model MBartModel MT5Model MT5EncoderModel MarianModel MarianMTModel MistralModel
MistralForCausalLM OPTModel OPTForCausalLM PegasusModel RegNetModel RegNetForImageClassification ResNetModel
ResNetForImageClassification RoFormerModel RoFormerForMaskedLM RobertaModel RobertaForMaskedLM
RobertaPreLayerNormModel T5Model T5EncoderModel T5ForConditionalGeneration ViTModel ViTForImageClassification
Wav2Vec2Model Wav2Vec2ForCTC WhisperModel WhisperForConditionalGeneration XGLMModel XGLMForCausalLM XLMRobertaModel
"""


RECORDED = """
AlbertForMaskedLM BartModel BeitModel BertForPreTraining BigBirdModel BloomModel CLIPModel Dinov2Model
DistilBertForMaskedLM ElectraForPreTraining GPT2Model GPTJModel GPTNeoModel GemmaModel LlamaForCausalLM LongT5Model
MBartModel MarianModel MistralModel OPTModel PegasusModel RegNetForImageClassification ResNetForImageClassification
RoFormerModel RobertaForMaskedLM RobertaPreLayerNormModel T5Model ViTForImageClassification Wav2Vec2ForCTC WhisperModel
XGLMModel
"""
RECORDED = RECORDED.split()


def names() -> list[str]:
    """The architectures, by the name of the PyTorch class."""
    return NAMES.split()


def config_of(cls: Any) -> Any:
    """A tiny configuration for a class of transformers."""
    family = max((name for name in SPECIAL if cls.__name__.startswith(name)), key=len, default="")
    if family == "CLIP":
        return _clip_config(cls)
    known = inspect.signature(cls.config_class.__init__).parameters
    sizes = SPECIAL[family] if family in WHOLE else SMALL | SPECIAL.get(family, {})
    config = cls.config_class(**{name: value for name, value in sizes.items() if name in known})
    config._attn_implementation, config.use_cache = "eager", False
    return config


def _clip_config(cls: Any) -> Any:
    text = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 64, "projection_dim": 16}
    vision = {**text, "image_size": 16, "patch_size": 4}
    if cls.__name__ == "CLIPModel":
        config = cls.config_class(text_config=text, vision_config=vision, projection_dim=16)
    else:
        config = cls.config_class(**(vision if "Vision" in cls.__name__ else text))
    config._attn_implementation = "eager"
    return config


def make(name: str) -> Pair:
    """A pair by the name of its PyTorch class."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, name)
    config = config_of(cls)
    native = noisy_torch(cls(config))
    flax_model = getattr(transformers, f"Flax{name}")(config, _do_init=False)
    arguments = example_inputs(flax_model)
    truth = converted(native, flax_model)
    take_in_order(native, list(arguments))
    inputs = tuple(arguments.values())

    def target() -> mp.Model:
        last = tuple(np.moveaxis(x, 1, -1) if x.ndim == 4 else x for x in inputs)
        return mp.wrap(flax_model.module, *last, variables=variables_of(flax_model))

    source = mp.wrap(native)
    return Pair(
        source, target, lambda net: unequal(truth, flat(net.variables)), inputs, partial(pairing, native, flax_model)
    )


class _Caught(Exception):
    pass


def example_inputs(flax_model: Any) -> dict[str, np.ndarray]:
    """What the linen module is called with, by name, images with their channels first: as its own init does it."""
    import jax
    from flax import linen

    def catch(module: Any, rngs: Any, *args: Any, **kwargs: Any) -> None:
        raise _Caught(args, kwargs)

    with mock.patch.object(linen.Module, "init", catch):
        try:
            flax_model.init_weights(jax.random.key(0), _batch_shape(flax_model))
        except _Caught as caught:
            args, kwargs = caught.args
    keywords = list(inspect.signature(type(flax_model.module).__call__).parameters)[1:]
    given = dict(zip(keywords, args, strict=False)) | kwargs
    found = {word: np.asarray(given[word]) for word in keywords if hasattr(given.get(word), "shape")}
    for seed, (keyword, values) in enumerate(found.items()):
        if keyword.endswith("input_ids"):
            found[keyword] = ids(values.shape, seed=seed)
        elif (values.dtype.kind == "f" and "mask" not in keyword) or keyword == "input_values":
            rng = np.random.default_rng(seed)
            found[keyword] = rng.normal(size=values.shape).astype("float32")
            if values.ndim == 4:
                found[keyword] = np.ascontiguousarray(np.moveaxis(found[keyword], -1, 1))
        elif values.dtype.kind == "i":
            found[keyword] = values.astype(np.int32)
    return found


def _batch_shape(flax_model: Any) -> Any:
    """Two examples, of eight tokens where it is text."""
    shape, size = flax_model.input_shape, getattr(flax_model.config, "image_size", 32)
    if isinstance(shape[0], tuple):  # text and images
        return (2, 8), (2, 16, 16, 3)
    if len(shape) == 4:
        return 2, size, size, 3
    if len(shape) == 3:  # spectrograms
        return (2, *shape[1:])
    return (2, 8) if shape[1] < 1024 else (2, 64)  # a wave is longer


@cache
def variables_of(flax_model: Any) -> dict[str, Any]:
    """Random variables of the shapes that a Flax model has."""
    import jax

    rng = np.random.default_rng(1)
    tree = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), flax_model.params_shape_tree)
    tree = dict(tree)
    return tree if "params" in tree else {"params": tree}


def converted(native: Any, flax_model: Any) -> dict[str, np.ndarray]:
    """What transformers' converter gives, by the path in the variables."""
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    tree = variables_of(flax_model)
    params = tree if "batch_stats" in tree else tree["params"]
    # The converter reads two attributes of a model, whose parameters need not be made for that.
    stand_in = SimpleNamespace(params=params, base_model_prefix=flax_model.base_model_prefix)
    given = convert_pytorch_state_dict_to_flax(dict(native.state_dict()), stand_in)
    return flat(given if "params" in params else {"params": given})


def flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of nested dicts by their paths, joined with slashes."""
    found: dict[str, np.ndarray] = {}
    for name, child in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        found |= flat(child, path) if hasattr(child, "items") else {path: np.asarray(child)}
    return found


def take_in_order(native: Any, keywords: list[str]) -> None:
    """Let a PyTorch model take the arguments that a Flax module takes, in its order; those it has not are dropped."""
    original = native.forward
    known = inspect.signature(original).parameters

    def forward(*args: Any) -> Any:
        given = {name: value for name, value in zip(keywords, args, strict=False) if name in known}
        return original(**{name: value.long() if "ids" in name else value for name, value in given.items()})

    native.forward = forward


def pairing(native: Any, flax_model: Any, target: mp.Model) -> dict[str, str]:
    """target name -> PyTorch name, read off the converter by arrays that hold their own number."""
    import torch

    names = list(native.state_dict())
    marked = {name: torch.full(value.shape, float(i)) for i, (name, value) in enumerate(native.state_dict().items())}
    stand_in = SimpleNamespace(state_dict=lambda: marked)
    found = converted(stand_in, flax_model)
    table = store_of(target).table
    paths = {name: "/".join((*slot.owner, slot.leaf)) for name, slot in zip(table.names, table.slots, strict=True)}
    return {name: names[int(found[path].flat[0])] for name, path in paths.items() if path in found}
