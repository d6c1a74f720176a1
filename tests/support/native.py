"""Gradients by each framework's own means, written as its users write them: the truth for ``value_and_grad``.

Each function takes a model that ``mp.build`` made, X and y, and gives the gradients of the mean squared error by the
framework's own names, in its own layout.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import multiparam as mp

Arrays = dict[str, np.ndarray]


def torch(net: mp.Model, x: np.ndarray, y: np.ndarray) -> Arrays:
    import torch

    model = net.native
    model.train()
    model.zero_grad()
    loss = torch.nn.functional.mse_loss(model(torch.tensor(x)), torch.tensor(y))
    loss.backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def mxnet(net: mp.Model, x: np.ndarray, y: np.ndarray) -> Arrays:
    import mxnet

    model = net.native
    x, y = mxnet.nd.array(x, dtype=x.dtype), mxnet.nd.array(y, dtype=y.dtype)
    with mxnet.autograd.record():
        loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    trained = {p.name: p for p in model.collect_params().values() if p.grad_req != "null"}
    return {name: p.grad().asnumpy() for name, p in trained.items()}


def jax(net: mp.Model, x: np.ndarray, y: np.ndarray) -> Arrays:
    import jax
    from flax import traverse_util

    module, variables = net.native, net.variables

    def loss(params: dict) -> jax.Array:
        out, _ = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return ((out - y) ** 2).mean()

    with multiparam_x64():
        grads = jax.grad(loss)(variables["params"])
        return {"/".join(path): np.asarray(g) for path, g in traverse_util.flatten_dict(grads).items()}


def multiparam_x64() -> object:
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def tensorflow(net: mp.Model, x: np.ndarray, y: np.ndarray) -> Arrays:
    import tensorflow as tf

    model = net.native
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(tf.constant(x), training=True) - y) ** 2)
    variables = {v.path: v for v in model.trainable_variables}
    grads = tape.gradient(loss, [v.value for v in variables.values()])
    return {name: tf.convert_to_tensor(g).numpy() for name, g in zip(variables, grads, strict=True)}


GRADIENTS: dict[str, Callable[[mp.Model, np.ndarray, np.ndarray], Arrays]] = {
    "torch": torch,
    "mxnet": mxnet,
    "jax": jax,
    "tensorflow": tensorflow,
}
