"""What a model runs, differentiates and trains: the part of :class:`multiparam.Model` that needs a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import WrongType
from .arrays import to_numpy
from .functional import native_values
from .group import Group
from .materialise import require_values
from .optimizing import Optimizer
from .protocol import Activation, Array
from .schedules import Rate
from .summaries import Summary, output_shapes, summarise
from .training import Step


class Running(Group):
    """The verbs over forward passes: of a :class:`multiparam.Model`, whose base this is."""

    @property
    def _title(self) -> str:
        return f"{self._store.backend} {type(self._store.host.native).__name__}"

    def __call__(self, *inputs: Any, train: bool | None = None, **kwargs: Any) -> Array:
        """The forward pass.

        Args:
            *inputs: numpy arrays, which are converted (floats to the model's dtype), or the framework's own.
            train: Whether dropout and batch statistics are on; None: off, but for a gradient step.
            **kwargs: By keyword: numpy arrays converted likewise, anything else as it is.

        Returns:
            The framework's own output.

        Raises:
            NoValues: The model was made without memory; errors of the framework's own are raised as they are.
        """
        store = self._store
        mode = store.train if train is None else train
        arrays = tuple(store.native_array(x) for x in inputs)
        named = {name: store.native_array(x) for name, x in kwargs.items()} if kwargs else kwargs
        try:
            return store.host.call(arrays, named, mode)
        except Exception:
            require_values(store, *store.table.slots)  # the framework's words are about something else then
            raise

    def apply(self, parameters: Mapping[str, Any], *inputs: Any, train: bool | None = None, **kwargs: Any) -> Array:
        """The functional form: a forward pass with other arrays in the place of parameters; the model stays as it is.

        It is differentiable by them with the framework's own tools: ``torch.func.grad`` and ``vmap``, ``jax.grad``,
        ``jit`` and ``vmap``, ``tf.GradientTape``, ``autograd.record`` of MXNet.

        Args:
            parameters: Name -> array in canonical layout, as :meth:`state_dict` has them: the framework's own
                (``net.state_dict(native=True)``), traced or not, or numpy's. Of a tied parameter any of its names; what
                is not named has the values of the model.
            *inputs: As for a call.
            train: As for a call. What training would write, such as running statistics, is dropped, and dropout of
                Flax draws the same numbers at each call, unless it is given ``rngs``. Inside ``autograd.record`` of
                MXNet the mode is the recorded one's.
            **kwargs: As for a call.

        Returns:
            The framework's own output.

        Raises:
            ParameterNotFound: The model has no such name.
            ShapeError: An array has another shape than the parameter.
            StateError: Two names of one parameter come with different arrays.
            Unsupported: The framework has no such form: tf_keras.

            >>> import torch
            >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 2)), backend="torch")
            >>> loss = lambda parameters, x: net.apply(parameters, x).sum()
            >>> torch.func.grad(loss)(net.state_dict(native=True), np.array([[2.0, 3.0]]))["weight"].tolist()
            [[2.0, 3.0]]
        """
        store = self._store
        store.refresh(listing=False)
        require_values(store, *store.table.slots)
        values = native_values(store, parameters)
        arrays = tuple(store.native_array(x) for x in inputs)
        named = {name: store.native_array(x) for name, x in kwargs.items()}
        return store.host.call_with(values, arrays, named, store.train if train is None else train)

    def activations(self, *inputs: Any, **kwargs: Any) -> list[Activation]:
        """What each layer with parameters takes and gives in a forward pass in evaluation, in order of execution.

        Args:
            *inputs: As for a call.
            **kwargs: As for a call.

        Returns:
            One :class:`~multiparam.adapter.Activation` a call: ``layer`` (its name), ``inputs`` and ``output``. A layer
            used several times is there as often, under the name of each use.

            >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(2), mp.nn.ReLU()), np.ones((1, 3)), backend="torch")
            >>> [(call.layer, tuple(call.output.shape)) for call in net.activations(np.ones((4, 3)))]
            [('0', (4, 2))]
        """
        calls: list[Activation] = []
        with self._store.host.watch(calls.append):
            self(*inputs, train=False, **kwargs)
        return calls

    def native_array(self, array: Any) -> Array:
        """numpy as the framework's array.

        Args:
            array: A numpy array; anything else is left as it is.

        Returns:
            The framework's array; floats in the model's dtype, other dtypes as they are.
        """
        return self._store.native_array(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Any array as numpy: :func:`multiparam.to_numpy`.

        Args:
            array: A framework's array, gradient-tracked or not, a Parameter, or plain numbers.

        Returns:
            The same numbers; they may alias the array's memory.
        """
        return to_numpy(array)

    @property
    def dtype(self) -> str | None:
        """The dtype of the first parameter of floats."""
        return self._store.dtype

    def summary(self, *inputs: Any, **kwargs: Any) -> Summary:
        """A table of the layers: kinds, shapes of outputs, numbers of parameters, what is trained, memory, ties.

        Args:
            *inputs: As for a call: one forward pass in evaluation gives the shapes of outputs, and of parameters that
                the framework makes then. None at all: nothing is run, and what is not known yet is said to be so.
            **kwargs: As for a call.

        Returns:
            The table: text when it is printed, a table in a notebook. Each array is counted once, where it is first.

            >>> spec = mp.nn.Sequential(mp.nn.Linear(8), mp.nn.ReLU(), mp.nn.Linear(1))
            >>> net = mp.build(spec, np.ones((2, 4)), backend="torch")
            >>> print(net.summary(np.ones((2, 4))))
            torch Sequential
            layer  kind    output  parameters  trainable  memory
            0      linear  (2, 8)          40        yes  160 bytes
            2      linear  (2, 1)           9        yes   36 bytes
            2 layers, 49 parameters, all trainable; 196 bytes.
        """
        shapes: dict[str, str] | None = None
        if inputs or kwargs:
            shapes = {}
            with self._store.host.watch(output_shapes(shapes)):
                self(*inputs, train=False, **kwargs)
        self._store.refresh()
        return summarise(self, self._title, shapes)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def value_and_grad(self, objective: Callable[..., Any], *, train: bool = True) -> Step:
        """A compiled gradient step.

        Args:
            objective: ``objective(net, *batch)`` gives a native scalar: one of ``mp.losses``, or a function of yours.
            train: Whether the network runs in training mode, with dropout and batch statistics.

        Returns:
            ``step(*batch)``: it gives the loss and a mapping name -> gradient, and leaves these in each ``.grad``.

        Raises:
            WrongType: The objective is no function.

            >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 2)), backend="torch")
            >>> _ = net.init(mp.init.constant(1))
            >>> step = net.value_and_grad(mp.losses.mse)
            >>> loss, grads = step(np.array([[1., 2.]]), np.array([[0.]]))
            >>> float(loss), mp.to_numpy(grads["weight"]).tolist()
            (9.0, [[6.0, 12.0]])
        """
        if not callable(objective):
            raise WrongType(f"An objective is a function of the network and a batch; this is {objective!r:.80}.")
        return Step(self._store, partial(objective, self), train)

    def optimizer(self, optimizer: Any, /, **options: Rate) -> Optimizer:
        """The framework's own optimizer, with PyTorch's meaning of each option.

        Args:
            optimizer: ``"sgd"``, ``"momentum"``, ``"adam"`` or ``"adamw"``; or a native optimizer, taken as it is:
                torch.optim's, a Gluon Trainer or an MXNet optimizer, an optax transformation, Keras'; or a class of
                these, such as ``torch.optim.RMSprop``, or optax' function.
            **options: For sgd ``lr=0.01``; for momentum ``lr=0.01, momentum=0.9, nesterov=False``; for adam
                ``lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8``, eps being added to the root of the corrected second
                moment (Kingma and Ba, 2015, algorithm 1); each with ``weight_decay=0``, which adds ``weight_decay * p``
                to the gradient of p before all else (torch.optim's SGD and Adam). adamw has adam's, and
                ``weight_decay=0.01`` that does not go through the moments: p loses ``lr * weight_decay * p``. ``lr``
                may be a schedule: a function of the number of updates made before, such as
                ``lambda step: 0.1 * 0.9**step``. Of a native class its own options.

        Returns:
            The optimizer over the trainable parameters; ``step()`` uses each ``.grad``.

        Raises:
            InvalidArgument: There is no such optimizer, or it has no such option; a native one holds other arrays.
            WrongType: It is neither a name nor an optimizer of the framework; a schedule gives no number.

            >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 1)), backend="torch")
            >>> _ = net.init(mp.init.constant(1))
            >>> net.optimizer("sgd", lr=0.5).step({"weight": np.ones((1, 1))})
            >>> net["weight"].numpy().tolist()
            [[0.5]]
        """
        return Optimizer(self._store, optimizer, options)
