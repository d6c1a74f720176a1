"""Gluon's model zoo -> torchvision, and gluoncv -> timm, where they are one function: so native outputs must be the
same."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from pairs import Pair, apart, image, noisy_model

import multiparam as mp

TITLE = "Gluon's model zoo → torchvision, gluoncv → timm"
NEEDS = ("torch", "torchvision", "mxnet", "timm", "gluoncv")

# Gluon's name -> the library of the target, its name there, and the pixels of an image
MODELS: dict[str, tuple[str, str, int]] = {
    **{name: ("torchvision", name, 224) for name in ("alexnet", "vgg11", "vgg13", "vgg16", "vgg11_bn", "vgg13_bn")},
    "squeezenet1.0": ("torchvision", "squeezenet1_0", 224),
    "squeezenet1.1": ("torchvision", "squeezenet1_1", 224),
    "densenet121": ("torchvision", "densenet121", 224),
    "densenet169": ("torchvision", "densenet169", 224),
    "resnet18_v1": ("torchvision", "resnet18", 224),
    "resnet34_v1": ("torchvision", "resnet34", 224),
    "resnet18_v1b": ("timm", "resnet18.gluon_in1k", 224),
    "resnet34_v1b": ("timm", "resnet34.gluon_in1k", 224),
    "resnet50_v1b": ("timm", "resnet50.gluon_in1k", 224),
    "resnet50_v1c": ("timm", "resnet50c.gluon_in1k", 224),
    "resnet50_v1d": ("timm", "resnet50d.gluon_in1k", 224),
    "resnet50_v1s": ("timm", "resnet50s.gluon_in1k", 224),
    "resnext50_32x4d": ("timm", "resnext50_32x4d.gluon_in1k", 224),
    "se_resnext50_32x4d": ("timm", "seresnext50_32x4d.gluon_in1k", 224),
}
RECORDED = ("alexnet", "squeezenet1.1", "resnet18_v1", "resnet50_v1d")


def names() -> list[str]:
    """The architectures, by Gluon's names."""
    return list(MODELS)


def make(name: str) -> Pair:
    """A pair by Gluon's name."""
    import torch

    library, target_name, size = MODELS[name]
    pixels = image(size)
    native = gluon_model(library, name, pixels)
    source = noisy_model(mp.wrap(native))
    outputs = native(mxnet().nd.array(pixels)).asnumpy()

    def target() -> mp.Model:
        torch.manual_seed(1)
        return mp.wrap(torch_model(library, target_name).eval())

    def judge(net: mp.Model) -> str:
        with torch.no_grad():
            return apart(outputs, net.native(torch.from_numpy(pixels)))

    return Pair(source, target, judge, (pixels,))


def mxnet() -> Any:
    """MXNet, as multiparam imports it."""
    from multiparam_mxnet.load import load

    return load()


def gluon_model(library: str, name: str, pixels: np.ndarray) -> Any:
    """A Gluon model with random weights, run once: shapes are only known then."""
    mx = mxnet()
    mx.random.seed(0)
    if library == "torchvision":
        from mxnet.gluon.model_zoo import vision

        native = vision.get_model(name, pretrained=False)
    else:
        native = gluoncv().model_zoo.get_model(name, pretrained=False)
    native.initialize(mx.init.Xavier())
    native(mx.nd.array(pixels))
    return native


def gluoncv() -> Any:
    """gluoncv, which refuses to be imported beside a torch of today."""
    hidden = {name: sys.modules.get(name) for name in ("torch", "tensorflow")}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import gluoncv
    finally:
        for name, module in hidden.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    return gluoncv


def torch_model(library: str, name: str) -> Any:
    """A model of torchvision or timm with random weights."""
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    import torchvision

    options = {"init_weights": True} if name.startswith(("densenet", "vgg")) and "vgg" in name else {}
    return getattr(torchvision.models, name)(weights=None, **options)
