"""Model: the five verbs over a host. How models come in is :mod:`multiparam.core.construction`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, overload

from .. import paths
from ..errors import UnsupportedAttribute
from . import ties
from .group import Group
from .inputs import Inputs
from .materialise import materialise
from .parameter import Parameter, overlapping, parameter_at
from .protocol import Adapter, Host
from .running import Running
from .store import Store
from .table import same_architecture
from .unlisted import warn_of_overlaps, warn_of_unlisted


class Model(Running):
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
        store, host = self._store, self.adapter.wrap(native, Inputs())
        same_architecture(store.table, store.read_table(host))
        store.replace_host(host)
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

    # -- access

    @overload
    def __getitem__(self, key: int | slice) -> Group: ...
    @overload
    def __getitem__(self, key: str) -> Parameter: ...
    def __getitem__(self, key: int | slice | str) -> Parameter | Group:
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
        :class:`MultiparamWarning` names them, as at every verb on the whole model; others name what the model holds
        that is neither parameter nor buffer, such as extra state, and parameters that lie in one memory.

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
        warn_of_unlisted(self._store.host)
        warn_of_overlaps(overlapping({**self.parameters(), **self.buffers()}))
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

    def materialise(self) -> Model:
        """Give memory to what was made without: ``torch.device("meta")``, ``jax.eval_shape``, ``nnx.eval_shape``.

        :func:`multiparam.load` and :func:`multiparam.transfer` do so with ``materialise=True``. What has values keeps
        them. torch's ``native.to_empty(device=...)`` does it on a device of one's choice, and is noticed.

        Returns:
            The model: its parameters and buffers hold zeros, tied where they were, and so do the buffers that are no
            part of its state, which its own code would have to compute again; a MultiparamWarning names those.

            >>> import torch
            >>> with torch.device("meta"):
            ...     native = torch.nn.Linear(2, 1)
            >>> mp.wrap(native).materialise()["weight"].numpy()
            array([[0., 0.]], dtype=float32)
        """
        self._store.refresh()
        materialise(self._store, self._store.table.slots)
        return self

    def trainable_mask(self) -> Any:
        """What :meth:`freeze` has left trainable, for native training in a framework whose arrays have no flags (Flax).

        Returns:
            A pytree of bools for the parameters of a linen module (``variables["params"]``), or the ``nnx.Param`` state
            of an NNX one: ``optax.multi_transform({True: tx, False: optax.set_to_zero()}, mask)`` trains by it.

        Raises:
            UnsupportedAttribute: The framework keeps flags in the model, where its own training sees them.

            >>> from flax import nnx
            >>> net = mp.wrap(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
            >>> import warnings
            >>> warnings.simplefilter("ignore", mp.MultiparamWarning)  # it says that native training needs the mask
            >>> _ = net.freeze("bias")
            >>> nnx.to_pure_dict(net.trainable_mask())
            {'bias': False, 'kernel': True}
        """
        return self._store.host.trainable_mask()
