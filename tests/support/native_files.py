"""Models as users of each framework write them, with what is laid out otherwise there, and the files that the framework
itself writes of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import multiparam as mp

IMAGE = np.linspace(-1, 1, 72, dtype=np.float32).reshape(2, 3, 3, 4)  # N H W C
IMAGE_FIRST = np.ascontiguousarray(IMAGE.transpose(0, 3, 1, 2))


def torch() -> mp.Model:
    from torch import nn

    return mp.wrap(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4)))


def gluon(layout: str = "NCHW") -> mp.Model:
    from multiparam_mxnet.load import load

    nn = load().gluon.nn
    net = nn.HybridSequential()
    axis = layout.index("C")
    with net.name_scope():
        net.add(nn.Conv2D(4, 3, layout=layout, in_channels=4), nn.BatchNorm(axis=axis, in_channels=4))
        net.add(nn.Flatten(), nn.Dense(4, in_units=4))
    net.initialize()
    return mp.wrap(net)


def linen() -> mp.Model:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), padding="VALID")(x))
            return nn.Dense(4)(nn.MultiHeadDotProductAttention(2)(x.reshape(x.shape[0], -1, 4)))

    return mp.wrap(Net(), IMAGE)


def nnx() -> mp.Model:
    from flax import nnx as nn

    class Net(nn.Module):
        def __init__(self, rngs: Any) -> None:
            self.layers = nn.List([nn.Conv(4, 4, (3, 3), padding="VALID", rngs=rngs), nn.BatchNorm(4, rngs=rngs)])
            self.attention = nn.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
            self.out = nn.Linear(4, 4, rngs=rngs)
            self.drop = nn.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return self.out(self.attention(x.reshape(x.shape[0], -1, 4)))

    return mp.wrap(Net(nn.Rngs(0)))


def keras(library: str = "keras") -> mp.Model:
    k = __import__(library)
    make = k.layers
    inner = k.Sequential([k.Input((3, 3, 4)), make.Conv2D(4, 3), make.BatchNormalization(), make.Flatten()])
    inner.layers[0].trainable = False
    x = k.Input((3, 3, 4))
    return mp.wrap(k.Model(x, make.Dense(4)(make.Dropout(0.5)(inner(x)))))


def tf_keras() -> mp.Model:
    return keras("tf_keras")


def fill(net: mp.Model, seed: int = 1) -> mp.Model:
    """Another number in each place."""
    rng = np.random.default_rng(seed)
    for p in {**net.parameters(), **net.buffers()}.values():
        p.assign(rng.normal(size=p.shape).astype(p.dtype))
    return net


def flax_tree(net: mp.Model, path: Path) -> None:
    from flax import serialization

    path.write_bytes(serialization.to_bytes(net.variables))


def flax_params_only(net: mp.Model, path: Path) -> None:
    from flax import serialization

    path.write_bytes(serialization.to_bytes(net.variables["params"]))


def nnx_pure(net: mp.Model, path: Path) -> None:
    """The whole state, the keys of random streams too."""
    import jax
    from flax import nnx, serialization

    tree = nnx.to_pure_dict(nnx.state(net.native, nnx.Not(nnx.RngKey)))
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, tree)))


def gluon_collected(net: mp.Model, path: Path) -> None:
    net.native.collect_params().save(str(path))


def gluon_exported(net: mp.Model, path: Path) -> None:
    net.native.hybridize()
    net.native(__import__("mxnet").nd.array(IMAGE_FIRST))
    net.native.export(str(path.with_suffix("")))
    path.with_name(f"{path.stem}-0000.params").rename(path)


def hub_shards(net: mp.Model, path: Path) -> None:
    """Two files and the index beside them, as hubs have them: by torch, or by safetensors' own library."""
    import torch

    state = {name: tensor.clone() for name, tensor in net.native.state_dict().items()}
    stem, suffix = path.name.removesuffix(".index.json").split(".")
    weight_map = {name: f"{stem}-{i % 2 + 1:05d}-of-00002.{suffix}" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        tensors = {name: state[name] for name in state if weight_map[name] == file}
        if suffix == "bin":
            torch.save(tensors, path.with_name(file))
        else:
            from safetensors.torch import save_file

            save_file(tensors, path.with_name(file), metadata={"format": "pt"})
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def hub_file(net: mp.Model, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(net.native.state_dict(), path, metadata={"format": "pt"})


def distributed(net: mp.Model, path: Path) -> None:
    """A distributed checkpoint, which torch writes in one process as well, with a warning that it does."""
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(net.native.state_dict(), checkpoint_id=path)


def flax_shards(net: mp.Model, path: Path) -> None:
    """As hubs' loaders have them: the whole path of an array in one key."""
    from flax import serialization, traverse_util

    flat = traverse_util.flatten_dict(net.variables, sep="/")
    weight_map = {name: f"{path.name}-{i % 2 + 1:05d}-of-00002.msgpack" for i, name in enumerate(flat)}
    for file in set(weight_map.values()):
        tree = {name: np.asarray(flat[name]) for name in flat if weight_map[name] == file}
        path.with_name(file).write_bytes(serialization.to_bytes(tree))
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def orbax_tree(net: mp.Model, path: Path) -> None:
    from orbax import checkpoint

    checkpoint.PyTreeCheckpointer().save(path, net.variables)


def orbax_step(net: mp.Model, path: Path) -> None:
    """As trainers write it: a step of a manager, whose item has the arrays."""
    from flax import nnx
    from orbax import checkpoint

    with checkpoint.CheckpointManager(path) as manager:
        manager.save(7, args=checkpoint.args.StandardSave(nnx.state(net.native, nnx.Not(nnx.RngState))))
        manager.wait_until_finished()


def tf_checkpoint(net: mp.Model, path: Path) -> None:
    import tensorflow as tf

    tf.train.CheckpointManager(tf.train.Checkpoint(model=net.native), str(path), 1).save()


def tf_saved_model(net: mp.Model, path: Path) -> None:
    import tensorflow as tf

    if hasattr(net.native, "export") and type(net.native).__module__.startswith("keras."):
        net.native.export(str(path), verbose=False)
    else:
        tf.saved_model.save(net.native, str(path))


# Packages that a file's writer needs beside the framework.
ALSO = {
    "model.safetensors": "safetensors", "model.safetensors.index.json": "safetensors",
    "orbax": "orbax", "run": "orbax", "w.orbax": "orbax",
}  # fmt: skip
Write = Callable[[mp.Model, Path], Any]
# flavour, what writes, the file's name
WRITERS: list[tuple[str, Callable[[], mp.Model], Write, str]] = [
    ("torch", torch, lambda net, path: __import__("torch").save(net.native.state_dict(), path), "w.pt"),
    ("torch", torch, hub_file, "model.safetensors"),
    ("torch", torch, hub_shards, "model.safetensors.index.json"),
    ("torch", torch, hub_shards, "pytorch_model.bin.index.json"),
    ("torch", torch, distributed, "dcp"),
    ("gluon", gluon, lambda net, path: net.native.save_parameters(str(path)), "w.params"),
    ("gluon", lambda: gluon("NHWC"), lambda net, path: net.native.save_parameters(str(path)), "nhwc.params"),
    ("gluon", gluon, gluon_collected, "collected.params"),
    ("gluon", gluon, gluon_exported, "exported.params"),
    ("linen", linen, flax_tree, "w.msgpack"),
    ("linen", linen, flax_shards, "flax_model.msgpack.index.json"),
    ("linen", linen, orbax_tree, "orbax"),
    ("nnx", nnx, nnx_pure, "nnx.msgpack"),
    ("nnx", nnx, orbax_step, "run"),
    ("keras", keras, lambda net, path: net.native.save_weights(path), "w.weights.h5"),
    ("keras", keras, lambda net, path: net.native.save(path), "w.keras"),
    ("keras", keras, lambda net, path: net.native.save(path), "whole.h5"),
    ("keras", keras, tf_checkpoint, "checkpoints"),
    ("keras", keras, tf_saved_model, "exported"),
    ("tf_keras", tf_keras, tf_checkpoint, "checkpoints"),
    ("tf_keras", tf_keras, tf_saved_model, "exported"),
    ("tf_keras", tf_keras, lambda net, path: net.native.save_weights(str(path)), "w.h5"),
    ("tf_keras", tf_keras, lambda net, path: net.native.save_weights(str(path)), "two.weights.h5"),
    ("tf_keras", tf_keras, lambda net, path: net.native.save(str(path)), "whole2.h5"),
]
