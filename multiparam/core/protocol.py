"""What an adapter answers, and nothing more.

Three small interfaces. A :class:`Storage` is one array the framework keeps. A :class:`Host` is one live model:
it lists its slots, runs, binds a slot to a storage, and differentiates. An :class:`Adapter` makes hosts and
moves arrays. Naming, selection, ties, seeds, checks, files and comparison are written once, in the core.

Adapters subclass these protocols to inherit the defaults: what has a body here need not be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .host import Host
from .inputs import Inputs
from .slots import Activation, Array, NativeOptimizer, Piece, Run, Slot, Storage

if TYPE_CHECKING:
    import numpy as np

    from .architecture import Architecture

__all__ = ["Activation", "Adapter", "Array", "Host", "NativeOptimizer", "Piece", "Run", "Slot", "Storage"]


class Adapter(Protocol):
    """What answers for a framework."""

    unsupported: Mapping[str, str] = {}
    """What the framework cannot do: name -> reason. The tests turn these into strict xfails."""

    def wrap(self, native: Any, inputs: Inputs) -> Host:
        """A host for a user's model.

        Options that :func:`multiparam.wrap` takes (``variables``, ``seed``) are handed on, by name, to an adapter
        that has them as parameters of this method.

        Args:
            native: The model.
            inputs: The framework's arrays, to infer lazily made shapes from: ``inputs.positional`` and
                ``inputs.keywords``; empty where users give none.

        Returns:
            The host. The model stays as it is.
        """

    def build(self, architecture: Architecture, dtype: str) -> Host:
        """Real native layers for an architecture. The core fills them with numbers.

        Args:
            architecture: What to build, its shapes known: :meth:`Architecture.assemble` makes shared layers once.
            dtype: That of the parameters.

        Returns:
            The host of the new model.
        """

    def to_numpy(self, array: Array) -> np.ndarray:
        """The framework's array as numpy.

        Args:
            array: Tracked or not.

        Returns:
            The same numbers; they may alias.
        """

    def from_numpy(self, array: np.ndarray) -> Array:
        """numpy as the framework's array.

        Args:
            array: Of any dtype that the framework has.

        Returns:
            An array of the same dtype, with its own memory.
        """

    def detach(self, array: Array) -> Array:
        """A snapshot of an array.

        Args:
            array: Tracked or not.

        Returns:
            The same values as an independent, untracked array.
        """

    def mse(self, prediction: Array, target: Array) -> Array:
        """Mean squared error, differentiable (``torch.nn.MSELoss``).

        Args:
            prediction: A native array of any shape.
            target: One of the same shape.

        Returns:
            A native scalar: the mean of squared differences over all elements.
        """

    def cross_entropy(self, logits: Array, labels: Array, ignore_index: int) -> Array:
        """Cross-entropy, differentiable (``torch.nn.CrossEntropyLoss``).

        Args:
            logits: (N, C), before the softmax.
            labels: (N,) integers below C, or ``ignore_index``.
            ignore_index: The label of rows that are left out.

        Returns:
            A native scalar: the mean over the other rows of ``-log softmax(logits)[label]``.
        """

    def namespace(self, array: Array) -> Any:
        """The array operations, by the array API standard.

        Args:
            array: A native array.

        Returns:
            What has ``permute_dims``, ``reshape``, ``flip`` and ``concat`` for it, differentiably; numpy's older names
            do as well. The default: what the array itself names.
        """
        return array.__array_namespace__()  # of the array API standard; numpy's have it from 2.0 on

    def settings(self) -> Mapping[str, Any]:
        """The framework's settings that its numbers depend on, as a coarser matmul, where they are not its defaults.

        Returns:
            Name, as its users write it, -> value, as plain data; nothing, by default.
        """
        return {}

    def initializer(self, function: Any) -> Callable[[Storage, int], None] | None:
        """A filler, for one of the framework's own initialisers.

        Args:
            function: What a user gave to :meth:`multiparam.Group.init`.

        Returns:
            ``fill(storage, seed)``; None where it is none of the framework's, as by default.
        """
        return None
