"""The variables of a TensorFlow checkpoint, and of a SavedModel: read by TensorFlow, without its program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

import multiparam.adapter as mpa
from multiparam.errors import FileError

ENDING = "/.ATTRIBUTES/VARIABLE_VALUE"  # of every variable that tf.train.Checkpoint has saved
BOOKKEEPING = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter")


class Variable:
    """A variable of a checkpoint, read when numpy asks for it."""

    def __init__(self, reader: Any, name: str) -> None:
        self._reader = reader
        self._name = name
        shape = tuple(reader.get_variable_to_shape_map()[name])
        self.spec = mpa.ArraySpec(shape, reader.get_variable_to_dtype_map()[name].name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._reader.get_tensor(self._name), dtype)


def names_of(model: Any) -> dict[int, str]:
    """What a checkpoint of a model calls its variables, by identity: the shortest way to each, as TensorFlow walks."""
    names = {id(model): ""}
    waiting = [model]
    for item in waiting:  # which grows meanwhile
        for name, child in tf.train.TrackableView.children(item).items():
            if id(child) not in names:
                names[id(child)] = f"{names[id(item)]}.{name}".lstrip(".")
                waiting.append(child)
    return names


def _random_streams(reader: Any) -> set[str]:
    """The states of random streams, which are no parameters: only the list of objects has the variables' own names."""
    if not reader.has_tensor(BOOKKEEPING[0]):
        return set()
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(BOOKKEEPING[0]))
    attributes = (attribute for node in graph.nodes for attribute in node.attributes)
    return {each.checkpoint_key for each in attributes if each.full_name.endswith("seed_generator_state")}


def read(path: Path) -> Mapping[str, Any]:
    """The variables of a folder's newest checkpoint or of its SavedModel, by the paths that they were saved under."""
    saved = path / "variables" / "variables" if (path / "saved_model.pb").exists() else None
    newest = str(saved) if saved is not None else tf.train.latest_checkpoint(str(path))
    if newest is None:
        raise FileError(f"tf.train.latest_checkpoint finds none in the folder {str(path)!r}: its files are elsewhere.")
    reader = tf.train.load_checkpoint(newest)
    streams, twice = _random_streams(reader), reader.has_tensor(f"variables/0{ENDING}")
    variables: dict[str, Variable] = {}
    for name in sorted(reader.get_variable_to_shape_map()):
        short = name.removesuffix(ENDING)
        numbers = reader.get_variable_to_dtype_map()[name].name not in ("string", "variant", "resource")
        if twice and short.startswith("_all_variables/"):  # Keras' export writes its own and TensorFlow's of each
            continue
        if numbers and short not in BOOKKEEPING and name not in streams:
            variables[short.replace("/", ".")] = Variable(reader, name)
    return variables
