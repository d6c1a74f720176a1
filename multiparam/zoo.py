"""The textbook's networks as architectures of ``mp.nn``, each a function of its sizes: the defaults are the published.

>>> spec = lenet(classes=3)
>>> net = mp.build(spec, np.ones((2, 1, 28, 28)), backend="torch", dtype="float64")
>>> tuple(net(np.ones((2, 1, 28, 28))).shape)
(2, 3)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .nn import (
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Identity,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
)

__all__ = ["densenet", "googlenet", "lenet", "nin", "resnet18", "resnext", "vgg"]


def lenet(classes: int = 10, channels: tuple[int, int] = (6, 16), hidden: tuple[int, int] = (120, 84)) -> Layer:
    """LeNet-5 with sigmoids (LeCun et al., 1998), for images of 28 pixels or so.

    Args:
        classes: The size of the output.
        channels: Those of the two convolutions.
        hidden: The sizes of the two hidden linear layers.

    Returns:
        The architecture.

    >>> len(lenet().layers)
    12
    """
    return Sequential(
        *(Conv(channels[0], 5, padding=2), Sigmoid(), AvgPool(2)),
        *(Conv(channels[1], 5), Sigmoid(), AvgPool(2), Flatten()),
        *(Linear(hidden[0]), Sigmoid(), Linear(hidden[1]), Sigmoid(), Linear(classes)),
    )


def vgg(
    classes: int = 10,
    blocks: Sequence[tuple[int, int]] = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)),
    hidden: int = 4096,
    dropout: float = 0.5,
) -> Layer:
    """VGG (Simonyan and Zisserman, 2014): blocks of convolutions that each halve the image; VGG-11 by default.

    Args:
        classes: The size of the output.
        blocks: Of each block how many convolutions there are, and their channels.
        hidden: The size of the two hidden linear layers.
        dropout: The probability behind each of these.

    Returns:
        The architecture.

    >>> vgg(blocks=[(1, 8), (2, 16)]).names
    ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """

    def block(count: int, channels: int) -> Layer:
        convolutions = [layer for _ in range(count) for layer in (Conv(channels, 3, padding=1), ReLU())]
        return Sequential(*convolutions, MaxPool(2))

    head = [layer for _ in range(2) for layer in (Linear(hidden), ReLU(), Dropout(dropout))]
    return Sequential(*(block(*each) for each in blocks), Flatten(), *head, Linear(classes))


def nin(
    classes: int = 10,
    blocks: Sequence[tuple[int, int, int, int]] = ((96, 11, 4, 0), (256, 5, 1, 2), (384, 3, 1, 1)),
    dropout: float = 0.5,
) -> Layer:
    """Network in network (Lin, Chen and Yan, 2013): convolutions of one pixel in place of linear layers.

    Args:
        classes: The size of the output.
        blocks: The channels, kernel size, stride and padding of each block's first convolution.
        dropout: The probability before the last block.

    Returns:
        The architecture.

    >>> nin(blocks=[(8, 3, 1, 1)]).names
    ('0', '1', '2', '3', '4')
    """

    def block(channels: int, kernel: int, stride: int, padding: int) -> Layer:
        first = (Conv(channels, kernel, stride, padding), ReLU())
        return Sequential(*first, Conv(channels, 1), ReLU(), Conv(channels, 1), ReLU())

    body = [layer for each in blocks for layer in (block(*each), MaxPool(3, 2))]
    return Sequential(*body, Dropout(dropout), block(classes, 3, 1, 1), GlobalAvgPool())


def googlenet(classes: int = 10, width: int = 1) -> Layer:
    """GoogLeNet (Szegedy et al., 2015): nine blocks of four branches each, concatenated.

    Args:
        classes: The size of the output.
        width: What all channels are divided by: up to 8 for a small one.

    Returns:
        The architecture.

    >>> [len(stage.layers) for stage in googlenet(width=8).layers[:5]]
    [3, 5, 3, 6, 2]
    """

    def conv(channels: int, kernel: int, stride: int = 1) -> tuple[Layer, Layer]:
        return Conv(channels // width, kernel, stride, kernel // 2), ReLU()

    def inception(a: int, b: tuple[int, int], c: tuple[int, int], d: int) -> Layer:
        return Concat(
            Sequential(*conv(a, 1)),
            Sequential(*conv(b[0], 1), *conv(b[1], 3)),
            Sequential(*conv(c[0], 1), *conv(c[1], 5)),
            Sequential(MaxPool(3, 1, 1), *conv(d, 1)),
        )

    return Sequential(
        Sequential(*conv(64, 7, 2), MaxPool(3, 2, 1)),
        Sequential(*conv(64, 1), *conv(192, 3), MaxPool(3, 2, 1)),
        Sequential(inception(64, (96, 128), (16, 32), 32), inception(128, (128, 192), (32, 96), 64), MaxPool(3, 2, 1)),
        Sequential(
            inception(192, (96, 208), (16, 48), 64),
            inception(160, (112, 224), (24, 64), 64),
            inception(128, (128, 256), (24, 64), 64),
            inception(112, (144, 288), (32, 64), 64),
            inception(256, (160, 320), (32, 128), 128),
            MaxPool(3, 2, 1),
        ),
        Sequential(inception(256, (160, 320), (32, 128), 128), inception(384, (192, 384), (48, 128), 128)),
        GlobalAvgPool(),
        Linear(classes),
    )


def resnet18(
    classes: int = 10, stages: Sequence[tuple[int, int]] = ((2, 64), (2, 128), (2, 256), (2, 512)), small: bool = False
) -> Layer:
    """ResNet (He et al., 2016) with blocks of two convolutions of 3 pixels: ResNet-18 by default.

    Args:
        classes: The size of the output.
        stages: Of each stage how many blocks there are, and their channels; each but the first halves the image.
        small: For small images: begin with a convolution of 3 pixels that keeps the size, in place of one of 7 and a
            pooling that quarter it.

    Returns:
        The architecture.

    >>> [type(block).__name__ for block in resnet18().layers[1].layers]
    ['Sequential', 'Sequential']
    """

    def body(channels: int, stride: int) -> Layer:
        first = Conv(channels, 3, stride, 1, bias=False), BatchNorm(), ReLU()
        return Sequential(*first, Conv(channels, 3, padding=1, bias=False), BatchNorm())

    return _residual(stages, classes, small, body, stages[0][1])


def resnext(
    classes: int = 10,
    stages: Sequence[tuple[int, int]] = ((3, 256), (4, 512), (6, 1024), (3, 2048)),
    groups: int = 32,
    small: bool = False,
) -> Layer:
    """ResNeXt (Xie et al., 2017): residual blocks whose middle convolution is grouped; ResNeXt-50 32x4d by default.

    Args:
        classes: The size of the output.
        stages: Of each stage how many blocks there are, and their channels, which half of ``groups`` divide.
        groups: How many groups the middle convolutions have.
        small: As for :func:`resnet18`.

    Returns:
        The architecture.

    >>> len(resnext(stages=[(1, 32)], groups=4).layers)
    4
    """

    def body(channels: int, stride: int) -> Layer:
        inner = channels // 2
        grouped = Conv(inner, 3, stride, 1, groups=groups, bias=False), BatchNorm(), ReLU()
        first = Conv(inner, 1, bias=False), BatchNorm(), ReLU()
        return Sequential(*first, *grouped, Conv(channels, 1, bias=False), BatchNorm())

    return _residual(stages, classes, small, body, stages[0][1] // 4)


def _residual(
    stages: Sequence[tuple[int, int]],
    classes: int,
    small: bool,
    body: Callable[[int, int], Layer],
    stem: int,
) -> Layer:
    """Stages of residual blocks; one that changes channels or size projects its input."""
    before, layers = stem, [_stem(stem, small)]
    for number, (count, channels) in enumerate(stages):
        blocks: list[Layer] = []
        for position in range(count):
            stride = 2 if number and not position else 1
            main = body(channels, stride)
            if stride > 1 or before != channels:
                shortcut = Sequential(Conv(channels, 1, stride, bias=False), BatchNorm())
                joined: Layer = Add(("body", main), ("shortcut", shortcut))
            else:
                joined = Residual(main)
            blocks.append(Sequential(joined, ReLU()))
            before = channels
        layers.append(Sequential(*blocks))
    return Sequential(*layers, GlobalAvgPool(), Linear(classes))


def densenet(
    classes: int = 10,
    channels: int = 64,
    growth: int = 32,
    blocks: Sequence[int] = (6, 12, 24, 16),
    small: bool = False,
) -> Layer:
    """DenseNet (Huang et al., 2017): each layer's output is concatenated to its input.

    Args:
        classes: The size of the output.
        channels: Those of the first convolution.
        growth: How many channels each layer adds.
        blocks: How many layers each block has; between blocks channels and the image are halved.
        small: As for :func:`resnet18`.

    Returns:
        The architecture.

    >>> [type(layer).__name__ for layer in densenet(blocks=(2,)).layers]
    ['Sequential', 'Sequential', 'BatchNorm', 'ReLU', 'GlobalAvgPool', 'Linear']
    """

    def grown() -> Layer:
        body = BatchNorm(), ReLU(), Conv(growth, 3, padding=1, bias=False)
        return Concat(("input", Identity()), ("body", Sequential(*body)))

    layers: list[Layer] = [_stem(channels, small)]
    for number, count in enumerate(blocks):
        if number:
            layers.append(Sequential(BatchNorm(), ReLU(), Conv(channels // 2, 1, bias=False), AvgPool(2)))
            channels //= 2
        layers.append(Sequential(*(grown() for _ in range(count))))
        channels += count * growth
    return Sequential(*layers, BatchNorm(), ReLU(), GlobalAvgPool(), Linear(classes))


def _stem(channels: int, small: bool) -> Layer:
    if small:
        return Sequential(Conv(channels, 3, padding=1, bias=False), BatchNorm(), ReLU())
    return Sequential(Conv(channels, 7, 2, 3, bias=False), BatchNorm(), ReLU(), MaxPool(3, 2, 1))
