"""timm -> kimm (Keras 3). Both are one function: the truth is that native outputs are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from pairs import Pair, apart, image, noisy_torch

import multiparam as mp

TITLE = "timm → kimm (Keras 3)"
NEEDS = ("torch", "tensorflow", "keras", "timm", "kimm")

# timm's name -> kimm's class, and the pixels of an image
MODELS: dict[str, tuple[str, int]] = {
    "resnet18": ("ResNet18", 64),
    "resnet50": ("ResNet50", 64),
    "regnetx_002": ("RegNetX002", 64),
    "regnety_002": ("RegNetY002", 64),
    "ghostnet_100": ("GhostNetW100", 64),
    "ghostnetv2_100": ("GhostNetV2W100", 64),
    "inception_v3": ("InceptionV3", 96),
    "inception_next_tiny": ("InceptionNeXtTiny", 64),
    "mobileone_s0": ("MobileOneS0", 64),
    "repvgg_a0": ("RepVGGA0", 64),
    "vit_tiny_patch16_224": ("VisionTransformerTiny16", 64),
    "convnext_atto": ("ConvNeXtAtto", 64),
    "convmixer_768_32": ("ConvMixer736D32", 64),
    "hgnet_tiny": ("HGNetTiny", 64),
    "hgnetv2_b0": ("HGNetV2B0", 64),
    "vgg11_bn": ("VGG11", 224),
    "densenet121": ("DenseNet121", 64),
    "tf_efficientnet_lite0": ("EfficientNetLiteB0", 64),
    "tf_efficientnet_b0": ("EfficientNetB0", 64),
    "tf_efficientnetv2_b0": ("EfficientNetV2B0", 64),
    "tinynet_e": ("TinyNetE", 64),
    "lcnet_050": ("LCNet050", 64),
    "mobilenetv2_050": ("MobileNetV2W050", 64),
    "tf_mobilenetv3_small_minimal_100": ("MobileNetV3W100SmallMinimal", 64),
    "mobilenetv3_small_050": ("MobileNetV3W050Small", 64),
    "mobilevit_xxs": ("MobileViTXXS", 64),
    "mobilevitv2_050": ("MobileViTV2W050", 64),
    "legacy_xception": ("Xception", 96),
}
RECORDED = ("resnet18", "repvgg_a0", "vit_tiny_patch16_224", "convnext_atto", "lcnet_050", "regnetx_002")


def names() -> list[str]:
    """The architectures, by timm's names."""
    return list(MODELS)


def make(name: str) -> Pair:
    """A pair by timm's name."""
    import timm
    import torch

    torch.manual_seed(0)
    cls, size = MODELS[name]
    options = {"img_size": size} if name.startswith("vit") else {}
    native = noisy_torch(timm.create_model(name, **options))
    pixels = image(size)
    with torch.no_grad():
        outputs = native(torch.from_numpy(pixels)).numpy()
    last = np.ascontiguousarray(np.moveaxis(pixels, 1, -1))

    def judge(net: mp.Model) -> str:
        return apart(outputs, net.native(last, training=False))

    return Pair(mp.wrap(native), lambda: mp.wrap(keras_model(cls, size)), judge, (pixels,))


def keras_model(cls: str, size: int) -> Any:
    """A model of kimm with random weights."""
    import keras
    import kimm

    keras.utils.set_random_seed(1)
    options = {"weights": None, "include_preprocessing": False, "classifier_activation": "linear"}
    return getattr(kimm.models, cls)(input_shape=(size, size, 3), **options)
