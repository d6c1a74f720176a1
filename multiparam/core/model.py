"""Model: the five verbs over a host. How models come in is :mod:`multiparam.core.construction`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, overload

import numpy as np

from .. import paths
from ..errors import UnsupportedAttribute
from . import ties
from .arrays import to_numpy
from .group import Group
from .parameter import Parameter, parameter_at
from .protocol import Activation, Adapter, Array, Host
from .store import Store
from .table import same_architecture
from .training import Optimizer, Step


class Model(Group):
    """A framework's model behind one face. Made by :func:`multiparam.wrap` and :func:`multiparam.build`.

    Attributes:
        backend: The framework's name, such as ``"torch"``.
        adapter: What answers for the framework.

    >>> X = np.ones((2, 4), "float32")
    >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(8), mp.nn.ReLU(), mp.nn.Linear(1)), X, backend="torch")
    >>> list(net.parameters())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> net[2]["bias"] is net["2.bias"]
    True
    >>> tuple(net(X).shape)
    (2, 1)
    """

    def __init__(self, host: Host, backend: str, adapter: Adapter) -> None:
        super().__init__(Store(host, backend, adapter))
        self.backend = backend
        self.adapter = adapter
        self._named: dict[str, Parameter] = self._store.named  # the same dict: one attribute less on each access

    @property
    def native(self) -> Any:
        """The untouched framework model.

        Settable to another object of the same architecture, such as a reloaded one: names and known ties stay, see
        :meth:`check`.

        Raises:
            InvalidArgument: The parameters of the new one have other names or shapes.
        """
        return self._store.host.native

    @native.setter
    def native(self, native: Any) -> None:
        store, host = self._store, self.adapter.wrap(native, ())
        same_architecture(store.table, store.read_table(host))
        store.host = host
        # A copy may have lost ties; those known before stay on record, so that check finds them.
        store.reread(keep_known=True)

    @property
    def variables(self) -> Any:
        """The plain pytree of a framework that keeps parameters apart from the model, ties expanded.

        Settable to one of the same structure, as native code gives it back; copies of a tied array must still be
        equal.

        Raises:
            UnsupportedAttribute: The framework keeps them inside: take them from ``native`` there.
        """
        self._require_variables()
        return self._store.host.variables

    @variables.setter
    def variables(self, tree: Any) -> None:
        self._require_variables()
        self._store.host.variables = tree

    def _require_variables(self) -> None:
        """By the host's class, since looking would expand the whole tree."""
        if type(self._store.host).variables is Host.variables:
            raise UnsupportedAttribute(f"{self.backend} keeps the parameters in the model itself: use net.native.")

    # -- running

    def __call__(self, *inputs: Any, train: bool | None = None, **kwargs: Any) -> Array:
        """The forward pass.

        Args:
            *inputs: numpy arrays, which are converted (floats to the model's dtype), or the framework's own.
            train: Whether dropout and batch statistics are on; None: off, but for a gradient step.
            **kwargs: Handed to the framework's model as they are.

        Returns:
            The framework's own output.
        """
        store = self._store
        mode = store.train if train is None else train
        return store.host.call(tuple(store.native_array(x) for x in inputs), kwargs, mode)

    def activations(self, *inputs: Any) -> list[Activation]:
        """What each layer with parameters takes and gives in a forward pass in evaluation, in order of execution.

        Args:
            *inputs: As for a call.

        Returns:
            One :class:`~multiparam.adapter.Activation` a call: ``layer`` (its name), ``inputs`` and ``output``. A layer
            used several times is there as often, under the name of each use.

            >>> net = mp.build(mp.nn.Sequential(mp.nn.Linear(2), mp.nn.ReLU()), np.ones((1, 3)), backend="torch")
            >>> [(call.layer, tuple(call.output.shape)) for call in net.activations(np.ones((4, 3)))]
            [('0', (4, 2))]
        """
        calls: list[Activation] = []
        self._store.host.activations(tuple(self.native_array(x) for x in inputs), calls.append)
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

    # -- access

    @overload
    def __getitem__(self, key: int) -> Group: ...
    @overload
    def __getitem__(self, key: str) -> Parameter: ...
    def __getitem__(self, key: int | str) -> Parameter | Group:
        # Two look-ups and no call: a loop over names pays this for each access. Other keys take the long way.
        if type(key) is str:
            parameter = self._named.get(key)
            if parameter is not None:
                return parameter
            index = self._store.table.by_name.get(key)
            if index is not None:
                parameter = self._named[key] = parameter_at(self._store, index)
                return parameter
        return super().__getitem__(key)

    def _mapping(self, buffers: bool, aliases: bool) -> Mapping[str, Parameter]:
        # Kept until the table changes: training loops list the parameters at each step.
        store = self._store
        listed: Mapping[str, Parameter] | None = store.listed.get((buffers, aliases))
        if listed is None:
            table, slots = store.table, store.table.slots
            chosen = range(len(slots)) if aliases else table.first.values()
            shown = {table.names[i]: parameter_at(store, i) for i in chosen if slots[i].buffer is buffers}
            listed = store.listed[buffers, aliases] = MappingProxyType(shown)
        return listed

    # -- ties

    def ties(self, *, repair: bool = False) -> list[tuple[str, ...]]:
        """The groups of names that share one storage.

        Args:
            repair: Whether to tie those that :meth:`check` finds broken again first, to the first of their names.

        Returns:
            The names of each group, in definition order.
        """
        self._store.refresh()
        if repair:
            ties.repair(self._store)
        return self._store.table.groups()

    def tie(self, target: str, source: str, *, transpose: bool = False) -> Parameter:
        """Make ``target`` use ``source``'s storage from now on; ``target``'s own values are dropped.

        A layer used at several positions has one place for its weight, so tying one of its names ties them all.

        Args:
            target: A full name.
            source: A full name.
            transpose: Whether ``target`` is the transpose of ``source``, as a decoder's weight is of its encoder's. It
                stays a Parameter of its own shape, with the storage and all names in common. Where only the
                framework's own layouts differ, as Flax' and Keras' of an embedding and an output layer, nothing need
                be said.

        Returns:
            The Parameter that ``target`` is now.

        Raises:
            ParameterNotFound: There is no such name.
            ShapeError: The shapes differ.
            TieError: One is a buffer, the dtypes differ, or the framework keeps the two in arrays cut differently. The
                model is unchanged, as after the other errors.

            >>> layers = mp.nn.Linear(2, bias=False), mp.nn.Linear(3, bias=False)
            >>> net = mp.build(mp.nn.Sequential(*layers), np.ones((1, 3)), backend="torch")
            >>> net.tie("1.weight", "0.weight", transpose=True).shape, net.ties()
            ((3, 2), [('0.weight', '1.weight')])
        """
        self._store.refresh()
        ties.tie(self._store, target, source, transpose)
        return self.parameter(target)

    def untie(self, name: str) -> Parameter:
        """Give a name a storage of its own, with the values it has now. The gradient, of all uses, is dropped.

        Args:
            name: A full name.

        Returns:
            The Parameter that it is now.

        Raises:
            ParameterNotFound: There is no such name.
            TieError: It is not tied, or all its names are one layer used at several positions: one layer has one
                weight.
        """
        self._store.refresh()
        ties.untie(self._store, name)
        return self.parameter(name)

    def check(self) -> list[tuple[str, ...]]:
        """Look at the native model again, for ties that it has lost.

        Parameters that native code has replaced, added or removed since the last look are taken as they are now, and a
        :class:`MultiparamWarning` names them, as at every verb on the whole model.

        Frameworks lose ties without a word: torch's ``load_state_dict(assign=True)`` puts a tensor in each name's
        place, and a reloaded or mapped copy, given as ``net.native = copy``, may hold one for each.
        ``ties(repair=True)`` mends them.

        Returns:
            The known ties the model no longer has, each as the names that were one.

            >>> import torch
            >>> native = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
            >>> net = mp.wrap(native)
            >>> _ = net.tie("1.weight", "0.weight")
            >>> _ = native.load_state_dict({k: v.clone() for k, v in native.state_dict().items()}, assign=True)
            >>> import warnings
            >>> warnings.simplefilter("ignore", mp.MultiparamWarning)  # it says which parameters were replaced
            >>> net.check(), net.ties(repair=True), net.check()
            ([('0.weight', '1.weight')], [('0.weight', '1.weight')], [])
        """
        self._store.refresh()
        return ties.broken(self._store)

    def options(self) -> dict[str, dict[str, Any]]:
        """What weights do not carry: eps, momentum, stride, ..., in PyTorch's words.

        Returns:
            Layer name -> option -> value. Layers of which the adapter tells nothing are left out.
        """
        store, options = self._store, dict[str, dict[str, Any]]()
        for slot in store.table.slots:
            layer = paths.text(slot.path[:-1])
            if not options.get(layer):
                options[layer] = dict(store.host.options(slot))
        return {layer: known for layer, known in options.items() if known}

    # -- gradients

    def value_and_grad(self, objective: Callable[..., Any], *, train: bool = True) -> Step:
        """A compiled gradient step.

        Args:
            objective: ``objective(net, *batch)`` gives a native scalar: one of ``mp.losses``, or a function of yours.
            train: Whether the network runs in training mode, with dropout and batch statistics.

        Returns:
            ``step(*batch)``: it gives the loss and a mapping name -> gradient, and leaves these in each ``.grad``.

            >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 2)), backend="torch")
            >>> _ = net.init(mp.init.constant(1))
            >>> step = net.value_and_grad(mp.losses.mse)
            >>> loss, grads = step(np.array([[1., 2.]]), np.array([[0.]]))
            >>> float(loss), mp.to_numpy(grads["weight"]).tolist()
            (9.0, [[6.0, 12.0]])
        """
        return Step(self._store, partial(objective, self), train)

    def optimizer(self, name: str, **options: float | bool) -> Optimizer:
        """The framework's own optimizer, with PyTorch's meaning of each option.

        Args:
            name: ``"sgd"``, ``"momentum"`` or ``"adam"``.
            **options: For sgd ``lr=0.01``; for momentum ``lr=0.01, momentum=0.9, nesterov=False``; for adam
                ``lr=0.001, beta1=0.9, beta2=0.999, eps=1e-8``, eps being added to the root of the corrected second
                moment (Kingma and Ba, 2015, algorithm 1).

        Returns:
            The optimizer over the trainable parameters; ``step()`` uses each ``.grad``.

        Raises:
            InvalidArgument: There is no such optimizer, or it has no such option.

            >>> net = mp.build(mp.nn.Linear(1, bias=False), np.ones((1, 1)), backend="torch")
            >>> _ = net.init(mp.init.constant(1))
            >>> net.optimizer("sgd", lr=0.5).step({"weight": np.ones((1, 1))})
            >>> net["weight"].numpy().tolist()
            [[0.5]]
        """
        return Optimizer(self._store, name, options)
