"""What a model is called on: arrays by position, arrays by keyword, and options that are no arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

PLAIN = (bool, int, float, str, bytes, type(None))  # of a mapping of inputs: options of the call, not arrays


class Inputs(tuple[Any, ...]):
    """The arrays of a call, of which the last may go by keyword. A tuple: what takes arrays in order takes it as it is.

    Attributes:
        names: The keywords of the last arrays, in order.
        options: Keyword -> a value that is no array, such as ``use_cache=False``; handed on as it is.

    >>> inputs = Inputs.of({"x": np.ones(2), "mask": np.zeros(2), "training": False})
    >>> inputs.positional, list(inputs.keywords), len(inputs)
    ((), ['x', 'mask', 'training'], 2)
    """

    names: tuple[str, ...]
    options: Mapping[str, Any]

    def __new__(cls, arrays: Any = (), names: tuple[str, ...] = (), options: Mapping[str, Any] | None = None) -> Inputs:
        self = super().__new__(cls, arrays)
        self.names, self.options = names, options or {}
        return self

    @classmethod
    def of(cls, inputs: Any) -> Inputs:
        """As a user gives them.

        Args:
            inputs: None, an array, a tuple of several, or a mapping by keyword.

        Returns:
            The same as Inputs.
        """
        if isinstance(inputs, cls):
            return inputs
        if isinstance(inputs, Mapping):
            arrays = {name: value for name, value in inputs.items() if not isinstance(value, PLAIN)}
            options = {name: value for name, value in inputs.items() if name not in arrays}
            return cls(arrays.values(), tuple(arrays), options)
        if inputs is None:
            return cls()
        return cls(inputs if isinstance(inputs, tuple) else (inputs,))

    @property
    def positional(self) -> tuple[Any, ...]:
        """The arrays that go by position."""
        return self[: len(self) - len(self.names)]

    @property
    def keywords(self) -> dict[str, Any]:
        """Arrays and options that go by keyword."""
        return {**dict(zip(self.names, self[len(self) - len(self.names) :], strict=True)), **self.options}

    def map(self, function: Callable[[Any], Any]) -> Inputs:
        """The same with another array in each one's place.

        Args:
            function: Array -> array.

        Returns:
            Other inputs, under the same keywords.
        """
        return Inputs(map(function, self), self.names, self.options)

    def replace(self, arrays: Any) -> Inputs:
        """The same with these arrays in order, of which there are as many.

        Args:
            arrays: The new ones.

        Returns:
            Other inputs, under the same keywords.
        """
        return Inputs(arrays, self.names, self.options)

    def call(self, function: Callable[..., Any]) -> Any:
        """Call a function on them.

        Args:
            function: It takes them by position and by keyword, as they were given.

        Returns:
            What it gives.
        """
        return function(*self.positional, **self.keywords)
