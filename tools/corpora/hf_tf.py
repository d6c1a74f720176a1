"""transformers, PyTorch -> its TensorFlow twin (Keras 2). The truth is transformers' own loader, bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from hf_flax import config_of, take_in_order
from pairs import Pair, ids, noisy_torch, unequal

import multiparam as mp

TITLE = "transformers, PyTorch → TensorFlow"
NEEDS = ("torch", "tensorflow", "tf_keras", "transformers")

NAMES = """
AlbertModel BartModel BertModel BertForMaskedLM BlenderbotModel BlenderbotSmallModel CLIPModel CTRLModel CamembertModel
ConvBertModel ConvNextModel DebertaModel DebertaV2Model DistilBertModel ElectraModel EsmModel FlaubertModel
GPT2Model GPT2LMHeadModel GPTJModel LayoutLMModel LongformerModel MBartModel MPNetModel MT5Model MarianModel
MobileBertModel OPTModel OpenAIGPTModel PegasusModel RegNetModel RemBertModel ResNetModel RoFormerModel RobertaModel
RobertaPreLayerNormModel SegformerModel SwinModel T5Model ViTModel WhisperModel XGLMModel XLMModel XLNetModel
"""
RECORDED = ("BertForMaskedLM", "GPT2Model", "T5Model", "ConvNextModel", "DebertaV2Model", "SwinModel")


def names() -> list[str]:
    """The architectures, by the name of the PyTorch class."""
    return NAMES.split()


def make(name: str) -> Pair:
    """A pair by the name of its PyTorch class."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, name)
    config = config_of(cls)
    native = noisy_torch(cls(config))
    tf_class = getattr(transformers, f"TF{name}")

    def fresh() -> Any:
        model = tf_class(config)
        model(model.dummy_inputs, training=False)
        return model

    truth = loaded(fresh(), native.state_dict())
    keywords, inputs = example_inputs(fresh())
    if inputs is not None:
        take_in_order(native, keywords)

    def judge(net: mp.Model) -> str:
        return unequal(truth, by_place(net.native))

    source = mp.wrap(native)
    return Pair(source, lambda: wrapped(fresh()), judge, inputs, partial(pairing, native, fresh))


def wrapped(model: Any) -> mp.Model:
    """A TensorFlow model wrapped, with example inputs where it asks for them."""
    try:
        return mp.wrap(model)
    except mp.errors.UnknownShapes:
        return mp.wrap(model, model.dummy_inputs)


def by_place(model: Any) -> dict[str, np.ndarray]:
    """The weights of a TensorFlow model by their place in its list; their names hold counters."""
    return {str(place): variable.numpy() for place, variable in enumerate(model.weights)}


def loaded(model: Any, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What transformers' loader puts into a model, by place; what it leaves alone is left out."""
    from transformers.modeling_tf_pytorch_utils import load_pytorch_state_dict_in_tf2_model

    floats = [variable for variable in model.weights if variable.dtype.is_floating]  # the others are index tables
    for variable in floats:
        variable.assign(np.full(variable.shape, -9, variable.dtype.as_numpy_dtype))
    rename = getattr(model, "tf_to_pt_weight_rename", None)
    arrays = {name: value.numpy() for name, value in state.items()}
    load_pytorch_state_dict_in_tf2_model(model, arrays, allow_missing_keys=True, tf_to_pt_weight_rename=rename)
    return {place: array for place, array in by_place(model).items() if array.dtype.kind == "f" and (array != -9).any()}


def example_inputs(model: Any) -> tuple[list[str], tuple[np.ndarray, ...] | None]:
    """The first arguments of a TensorFlow model and texts for them; None where it takes images, or others between."""
    needed = set(model.dummy_inputs)
    keywords = list(inspect.signature(model.call).parameters)
    keywords = keywords[: 1 + max(keywords.index(word) for word in needed)]
    made = {
        "input_ids": ids((2, 8)),
        "decoder_input_ids": ids((2, 8), seed=1),
        "attention_mask": np.ones((2, 8), np.int32),
        "token_type_ids": np.zeros((2, 8), np.int32),
    }
    if not set(keywords) <= set(made):
        return keywords, None
    return keywords, tuple(made[word] for word in keywords)


def pairing(native: Any, fresh: Any, target: mp.Model) -> dict[str, str]:
    """target name -> PyTorch name, read off the loader by arrays that hold their own number."""
    import torch

    names = list(native.state_dict())
    marked = {name: torch.full(value.shape, float(i)) for i, (name, value) in enumerate(native.state_dict().items())}
    found = loaded(fresh(), marked)
    places = {id(variable): str(place) for place, variable in enumerate(target.native.weights)}
    listed = {name: places.get(id(p.native)) for name, p in {**target.parameters(), **target.buffers()}.items()}
    return {name: names[int(found[place].flat[0])] for name, place in listed.items() if place in found}
