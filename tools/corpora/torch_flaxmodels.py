"""torchvision -> flaxmodels (linen). Both are one function: the truth is that native outputs are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from pairs import Pair, apart, image, noisy_torch

import multiparam as mp

TITLE = "torchvision → flaxmodels (linen)"
NEEDS = ("torch", "torchvision", "flax", "flaxmodels")

MODELS = {"resnet18": 64, "resnet34": 64, "resnet50": 64, "resnet101": 64, "vgg16": 224}
RECORDED = ("resnet18", "resnet50")


def names() -> list[str]:
    """The architectures, by torchvision's names."""
    return list(MODELS)


def make(name: str) -> Pair:
    """A pair by torchvision's name."""
    import flaxmodels
    import torch
    import torchvision

    torch.manual_seed(0)
    native = noisy_torch(getattr(torchvision.models, name)(weights=None))
    pixels = image(MODELS[name])
    with torch.no_grad():
        outputs = native(torch.from_numpy(pixels)).numpy()
    last = np.ascontiguousarray(np.moveaxis(pixels, 1, -1))
    cls = getattr(flaxmodels, name.replace("resnet", "ResNet").replace("vgg", "VGG"))

    def target() -> mp.Model:
        return mp.wrap(cls(output="logits", pretrained=None, normalize=False), last, seed=1)

    def judge(net: mp.Model) -> str:
        return apart(outputs, run(net, last))

    return Pair(mp.wrap(native), target, judge, (pixels,))


def run(net: mp.Model, inputs: np.ndarray) -> Any:
    """What the linen module gives in evaluation mode."""
    return net.native.apply(net.variables, inputs, train=False)
