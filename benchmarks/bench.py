"""What multiparam costs over native code, as ratios within one run. ``make bench``.

Each pair is timed in turns, so that both meet the same noise, and the best of many turns counts: the rest is the
machine's. A ratio of 1 means that multiparam costs nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import multiparam as mp
from multiparam import nn
from multiparam.cli.terminal import quiet

Row = tuple[str, str, float, float, float | None]  # backend, what, native seconds, ours, aim as a ratio


def best(*functions: Callable[[], Any], turns: int = 15, seconds: float = 4.0) -> list[float]:
    """The best time of each, in turns."""
    found = [float("inf")] * len(functions)
    for function in functions:
        function()
    start = time.perf_counter()
    while turns > 0 or time.perf_counter() - start < seconds / 4:
        for i, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            found[i] = min(found[i], time.perf_counter() - begin)
        turns -= 1
        if time.perf_counter() - start > seconds:
            break
    return found


def many(function: Callable[[], Any], n: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(n):
            function()

    return run


SPEC = nn.Sequential(nn.Linear(512), nn.ReLU(), nn.Linear(256), nn.ReLU(), nn.Linear(10))
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 784)).astype("float32")
LABELS = RNG.integers(0, 10, 64)


def torch_step(net: mp.Model, x: Any, y: Any) -> Callable[[], Any]:
    import torch

    model = net.native
    optimizer = torch.optim.SGD(model.parameters())

    def step() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return step


def mxnet_step(net: mp.Model, x: Any, y: Any) -> Callable[[], Any]:
    import mxnet

    model, objective = net.native, mxnet.gluon.loss.SoftmaxCrossEntropyLoss()
    objective.hybridize()

    def step() -> Any:
        with mxnet.autograd.record():
            loss = objective(model(x), y).mean()
        loss.backward()
        mxnet.nd.waitall()
        return loss

    return step


def jax_step(net: mp.Model, x: Any, y: Any) -> Callable[[], Any]:
    import jax
    import optax

    module, variables = net.native, net.variables

    @jax.jit
    def compiled(variables: Any, x: Any, y: Any) -> Any:
        def loss(variables: Any) -> Any:
            logits = module.apply(variables, x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.value_and_grad(loss)(variables)

    return lambda: jax.block_until_ready(compiled(variables, x, y))


def tensorflow_step(net: mp.Model, x: Any, y: Any) -> Callable[[], Any]:
    import tensorflow as tf

    model = net.native
    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def compiled(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        return loss, tape.gradient(loss, variables)

    return lambda: compiled(x, y)


STEPS = {"torch": torch_step, "mxnet": mxnet_step, "jax": jax_step, "tensorflow": tensorflow_step}


def ready(result: Any) -> None:
    """Wait for asynchronous work, as the native steps do."""
    loss, grads = result
    if hasattr(loss, "block_until_ready"):
        import jax

        jax.block_until_ready([loss, grads._native])
    elif hasattr(loss, "wait_to_read"):
        import mxnet

        mxnet.nd.waitall()


def step(backend: str) -> Iterator[Row]:
    net = mp.build(SPEC, IMAGES, backend=backend)
    x, y = net.native_array(IMAGES), net.native_array(LABELS)
    if backend == "torch":
        y = y.long()
    ours = net.value_and_grad(mp.losses.cross_entropy)
    native, mine = best(STEPS[backend](net, x, y), lambda: ready(ours(x, y)), turns=400, seconds=12)
    yield backend, "gradient step, 784-512-256-10, batch 64", native, mine, 1.03


ACCESS: dict[str, Callable[[mp.Model], Callable[[], Any]]] = {
    "torch": lambda net: lambda: net.native[2].weight,
    "mxnet": lambda net: lambda: net.native[2].weight,
    "jax": lambda net: (lambda v: lambda: v["params"]["layers_2"]["kernel"])(net.variables),
    "tensorflow": lambda net: lambda: net.native.get_layer("2").kernel,
}


def access(backend: str) -> Iterator[Row]:
    net = mp.build(SPEC, IMAGES, backend=backend)
    native, mine = best(many(ACCESS[backend](net), 1000), many(lambda: net["2.weight"], 1000))
    yield backend, "access by name", native / 1000, mine / 1000, None


def big(backend: str, n: int) -> Any:
    """A native model of ``n`` layers, so ``2 * n`` parameters, wrapped in a function that wraps it anew."""
    if backend == "torch":
        import torch

        model = torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(n)])
        return lambda: mp.wrap(model)
    if backend == "mxnet":
        from mxnet import gluon

        model = gluon.nn.HybridSequential()
        model.add(*[gluon.nn.Dense(1, in_units=1) for _ in range(n)])
        model.initialize()
        return lambda: mp.wrap(model)
    if backend == "jax":
        from flax import linen

        module = linen.Sequential([linen.Dense(1) for _ in range(n)])
        leaf = {"kernel": np.zeros((1, 1), "float32"), "bias": np.zeros(1, "float32")}
        variables = {"params": {f"layers_{i}": dict(leaf) for i in range(n)}}
        return lambda: mp.wrap(module, variables=variables)
    import keras

    model = keras.Sequential([keras.layers.Dense(1) for _ in range(n)])
    for layer in model.layers:
        layer.build((None, 1))
    model.built = True
    return lambda: mp.wrap(model)


def listing(backend: str) -> Iterator[Row]:
    """Against torch's own ``named_parameters()`` of as many parameters, whatever the backend."""
    import torch

    n = 5000
    model = torch.nn.Sequential(*[torch.nn.Linear(1, 1) for _ in range(n)])
    wrap = big(backend, n)
    net = wrap()
    assert len(net.parameters()) == 2 * n
    names: list[Callable[[], Any]] = [
        lambda: list(model.named_parameters()),
        lambda: wrap().parameters(),
        lambda: list(net.parameters().items()),
    ]
    native, first, again = best(*names, turns=5)
    yield backend, "list 10,000 parameters, first wrap", native, first, 4.0
    yield backend, "list 10,000 parameters, again", native, again, 1.0


def init(backend: str) -> Iterator[Row]:
    import torch

    net = mp.build(nn.Embedding(8192, 8192), np.zeros((1, 1), "int64"), backend=backend)
    tensor = torch.empty(8192, 8192)
    native, mine = best(
        lambda: torch.nn.init.normal_(tensor), lambda: net.init(mp.init.normal(), "weight"), turns=4, seconds=20
    )
    yield backend, "init of 64 M values, over torch.nn.init.normal_", native, mine, 1.2


class Transformer:
    """A decoder of GPT-2's size, 124 M parameters with its output layer tied, as native layers by name and shape only:
    what a transfer moves does not depend on a forward pass."""

    width, depth, vocabulary, positions = 768, 12, 50257, 1024

    @classmethod
    def sizes(cls) -> dict[str, tuple[int, int]]:
        """Linear layers: name -> (inputs, outputs)."""
        w = cls.width
        block = {"qkv": (w, 3 * w), "proj": (w, w), "up": (w, 4 * w), "down": (4 * w, w)}
        return {f"{name}_{i}": size for i in range(cls.depth) for name, size in block.items()}


def torch_transformer() -> Any:
    import torch

    net = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in Transformer.sizes().items()})
    net["embed"] = torch.nn.Embedding(Transformer.vocabulary, Transformer.width)
    return net


def native_transformer(backend: str) -> Any:
    """The same in another framework, wrapped."""
    sizes = Transformer.sizes()
    if backend == "jax":
        from flax import linen

        class Net(linen.Module):
            def setup(self) -> None:
                for name, (_, outputs) in sizes.items():
                    setattr(self, name, linen.Dense(outputs))
                self.embed = linen.Embed(Transformer.vocabulary, Transformer.width)

        params = {
            name: {"kernel": np.zeros(size, "float32"), "bias": np.zeros(size[1], "float32")}
            for name, size in sizes.items()
        }
        table = np.zeros((Transformer.vocabulary, Transformer.width), "float32")
        return mp.wrap(Net(), variables={"params": {**params, "embed": {"embedding": table}}})
    if backend == "mxnet":
        from multiparam_mxnet.load import load

        gluon = load().gluon
        net = gluon.nn.HybridSequential()
        for name, (inputs, outputs) in sizes.items():
            net.register_child(gluon.nn.Dense(outputs, in_units=inputs), name)
        net.register_child(gluon.nn.Embedding(Transformer.vocabulary, Transformer.width), "embed")
        net.initialize()
        return mp.wrap(net)
    import keras

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            for name, (inputs, outputs) in sizes.items():
                layer = keras.layers.Dense(outputs)
                layer.build((None, inputs))
                setattr(self, name, layer)
            self.embed = keras.layers.Embedding(Transformer.vocabulary, Transformer.width)
            self.embed.build((None,))
            self.built = True

    return mp.wrap(Model())


def loop(backend: str, source: Any, target: Any) -> Callable[[], Any]:
    """The transfer as a user writes it by hand."""
    names = [*Transformer.sizes()]
    if backend == "jax":
        import jax
        import jax.numpy as jnp

        def run() -> Any:
            params = {}
            for name in names:
                kernel = jnp.asarray(source[name].weight.detach().numpy().T)
                params[name] = {"kernel": kernel, "bias": jnp.asarray(source[name].bias.detach().numpy())}
            params["embed"] = {"embedding": jnp.asarray(source["embed"].weight.detach().numpy())}
            return jax.block_until_ready(params)

    elif backend == "mxnet":
        net = target.native

        def run() -> Any:
            for name in names:
                net._children[name].weight.set_data(source[name].weight.detach().numpy())
                net._children[name].bias.set_data(source[name].bias.detach().numpy())
            net._children["embed"].weight.set_data(source["embed"].weight.detach().numpy())

    else:
        net = target.native

        def run() -> Any:
            for name in names:
                getattr(net, name).set_weights(
                    [source[name].weight.detach().numpy().T, source[name].bias.detach().numpy()]
                )
            net.embed.set_weights([source["embed"].weight.detach().numpy()])

    return run


def transfers(backend: str) -> Iterator[Row]:
    """124 M parameters from torch, against the loop a user would write, and its embedding against one memory pass."""
    if backend == "torch":
        return
    source = torch_transformer()
    wrapped, target = mp.wrap(source), native_transformer(backend)
    native, mine = best(loop(backend, source, target), lambda: mp.transfer(wrapped, target), turns=3, seconds=30)
    yield backend, "transfer 124 M parameters from torch, over the user's loop", native, mine, 1 / 3
    import torch

    table = np.random.default_rng(0).random((170_000, 768), "float32")  # 500 MB
    one = mp.wrap(torch.nn.Embedding.from_pretrained(torch.from_numpy(table)))
    other = mp.build(nn.Embedding(*table.shape), np.zeros((1, 1), "int64"), backend=backend)
    native, mine = best(table.copy, lambda: mp.transfer(one, other), turns=3, seconds=20)
    yield backend, "transfer 500 MB of embeddings from torch, over numpy's copy", native, mine, 1.2


def files() -> Iterator[Row]:
    """Against the safetensors library's own functions."""
    import tempfile
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    source = torch_transformer()
    net = mp.wrap(source)
    with tempfile.TemporaryDirectory() as folder:
        path, own = Path(folder) / "ours.safetensors", Path(folder) / "theirs.safetensors"
        native, mine = best(
            lambda: save_file(source.state_dict(), own), lambda: mp.save(net, path), turns=3, seconds=30
        )
        yield "torch", "save 500 MB, over safetensors.torch.save_file", native, mine, 1.1
        load = [
            lambda: source.load_state_dict(load_file(own)),
            lambda: mp.load(net, path),
            lambda: mp.load(net, path, verify=False),
        ]
        native, mine, unread = best(*load, turns=3, seconds=30)
        yield "torch", "load 500 MB, over load_file and load_state_dict", native, mine, 1.1
        yield "torch", "the same with verify=False", native, unread, 1.1


PEAK = """
import re, sys, tempfile
import numpy as np, torch
import multiparam as mp

size, shape = 2048, (1, 2048)
def both(n):
    native = torch.nn.Sequential(*[torch.nn.Linear(size, size, bias=False) for _ in range(n)])
    spec = mp.nn.Sequential(*[mp.nn.Linear(size, bias=False) for _ in range(n)])
    return mp.wrap(native), mp.build(spec, np.zeros(shape, "float32"), backend=sys.argv[1])
def travel(net, other):
    mp.transfer(net, other)
    mp.load(other, mp.save(other, tempfile.mkdtemp() + "/w.safetensors"))
def resident(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
travel(*both(1))  # what is imported and made on first use
pair = both(16)
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = resident("VmRSS")
travel(*pair)
print((resident("VmHWM") - before) / (size * size * 4))
"""


def memory(backend: str) -> Iterator[Row]:
    """What a transfer, a save and a load hold at most beyond the models, in units of the largest tensor, each in a
    process of its own: numbers, shown as seconds would be, of 1 and of that."""
    done = subprocess.run([sys.executable, "-c", PEAK, backend], capture_output=True, check=True, text=True)
    yield (
        backend,
        "peak memory of transfer, save and load, in largest tensors",
        1.0,
        float(done.stdout.split()[-1]),
        2.0,
    )


def comparison() -> Iterator[Row]:
    """mp.compare over one forward and backward pass of both models, each in a process of its own."""

    def run(what: str) -> tuple[float, float]:
        command = [sys.executable, str(Path(__file__).with_name("large.py")), what]
        seconds, peak = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()[-2:]
        return float(seconds), float(peak)

    (native, room), (mine, needed) = run("native"), run("compare")
    yield (
        "torch, jax",
        "compare two 124 M-parameter models, over a forward and backward pass of both",
        native,
        mine,
        3.0,
    )
    yield "torch, jax", "its peak memory, over theirs, in GB (as seconds)", room / 1e9, needed / 1e9, None


def imports() -> Iterator[Row]:
    def seconds(code: str) -> float:
        script = f"import time; s = time.perf_counter(); {code}; print(time.perf_counter() - s)"
        command = [sys.executable, "-c", script]
        return min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(15))

    numpy = seconds("import numpy")
    yield "core", "import multiparam over import numpy", numpy, seconds("import numpy; import multiparam"), None
    yield "core", "the same and mp.wrap", numpy, seconds("import numpy; import multiparam; multiparam.wrap"), None


def text(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def main() -> None:
    asked = sys.argv[1:]
    names = [name for name, status in mp.backends().items() if status and (not asked or name in asked)]
    table = Table(title="multiparam bench", title_justify="left")
    for column in ("backend", "what", "native", "multiparam", "ratio", "aim"):
        table.add_column(column, justify="left" if column in ("backend", "what") else "right")
    with quiet() as stderr:
        rows = [*imports(), *(files() if not asked or "torch" in asked else ())]
        rows += comparison() if {"torch", "jax"} <= set(names) else ()
        for name in names:
            for measure in (access, listing, step, init, transfers, memory):
                print(f"{name}: {measure.__name__}", file=stderr, flush=True)
                rows.extend(measure(name))
    for backend, what, native, mine, aim in rows:
        if backend == "core":
            ratio, goal = f"+{text(mine - native)}", "+15 ms"
        else:
            ratio, goal = f"{mine / native:.2f}", "" if aim is None else f"{aim:g}"
        table.add_row(backend, what, text(native), text(mine), ratio, goal)
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    main()
