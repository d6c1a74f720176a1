"""Drawing numbers: what an initialiser is, and the generators that a seed and a name stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import ShapeError

Shape = tuple[int, ...]
# Numbers drawn per generator: large arrays are filled by several threads, in pieces that do not depend on how many.
# It is a part of what a seed means: another size would give other numbers to every array above it.
CHUNK = 1 << 18


def generator(seed: int, name: str, chunk: int = 0) -> np.random.Generator:
    """The random generator of one parameter.

    Args:
        seed: The seed that users give.
        name: The canonical name.
        chunk: Which piece of :data:`CHUNK` numbers of the flat array it is for.

    Returns:
        numpy's Philox, keyed by a 128-bit hash (BLAKE2b) of seed and name; its counter starts at ``chunk`` * 2^128.

    >>> generator(0, "0.weight").random() == generator(0, "0.weight").random()
    True
    """
    from hashlib import blake2b

    # A hash of both, not seed + number: near seeds and near names must not give near, or shifted, streams. The zero
    # byte keeps (1, "2a") and (12, "a") apart. Philox counts to 2^256, so 2^128 a chunk never run into the next one's.
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"), counter=chunk << 128))


class Initializer:
    """A named initialiser: what the functions of this module give.

    Args:
        name: How it shows.
        fill: ``fill(out, rng, shape)`` draws in place; ``out`` is flat where the initialiser is elementwise.
        check: ``check(shape)`` raises, before anything is drawn, where the initialiser has no meaning for a shape.
        elementwise: Whether each number is drawn by itself, so that pieces of an array can be.
        dtype: What numbers are drawn in.
    """

    def __init__(
        self,
        name: str,
        fill: Callable[[np.ndarray, np.random.Generator, Shape], None],
        check: Callable[[Shape], Any] | None = None,
        elementwise: bool = True,
        dtype: type = np.float32,
    ) -> None:
        self.name = name
        self._fill = fill
        self._check = check
        self.elementwise = elementwise
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"mp.init.{self.name}"

    def check(self, shape: Shape) -> None:
        """See that the initialiser has a meaning for a shape.

        Args:
            shape: A canonical shape.

        Raises:
            ShapeError: It has none, such as a fan of a vector.
        """
        if self._check is not None:
            self._check(shape)

    def __call__(self, shape: Shape, rng: np.random.Generator, imaginary: bool = False) -> np.ndarray:
        """An array drawn from one generator.

        Args:
            shape: A canonical shape.
            rng: Where the numbers come from.
            imaginary: Whether the numbers are complex.

        Returns:
            The array, in the dtype that the initialiser draws in.
        """
        out = self._empty(shape, imaginary)
        self._fill(out.reshape(-1) if self.elementwise else out, rng, shape)
        return out

    def _empty(self, shape: Shape, imaginary: bool) -> np.ndarray:
        return np.empty(shape, self._dtype(imaginary))

    def _dtype(self, imaginary: bool) -> np.dtype[Any]:
        return np.dtype(np.result_type(self.dtype, np.complex64) if imaginary else self.dtype)

    def parallel(
        self, shape: Shape, seed: int, name: str, imaginary: bool = False, out: np.ndarray | None = None
    ) -> np.ndarray:
        """An array drawn by a few threads, each piece of :data:`CHUNK` numbers from a generator of its own.

        Args:
            shape: A canonical shape.
            seed: The seed.
            name: The canonical name.
            imaginary: Whether the numbers are complex.
            out: Contiguous memory of the shape to draw into, where its dtype is that which is drawn in.

        Returns:
            The array, which is ``out`` where that was taken; the same whatever the number of threads.

        Raises:
            ShapeError: As :meth:`check`.
        """
        self.check(shape)
        if not self.elementwise or math.prod(shape) <= CHUNK:
            return self(shape, generator(seed, name), imaginary)
        import os
        from concurrent.futures import ThreadPoolExecutor

        if out is None or out.dtype != self._dtype(imaginary):
            out = self._empty(shape, imaginary)
        flat = out.reshape(-1)

        def work(chunk: int) -> None:
            self._fill(flat[chunk * CHUNK : (chunk + 1) * CHUNK], generator(seed, name, chunk), shape)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(work, range(-(-flat.size // CHUNK))))  # a list, so that an error in a thread is raised here
        return out


def draw(
    function: Callable[..., Any],
    shape: Shape,
    *,
    seed: int,
    name: str,
    stacked: int = 0,
    imaginary: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The canonical array that an initialiser gives a parameter.

    Args:
        function: An initialiser of this module, or ``f(shape, rng) -> array``.
        shape: The canonical shape.
        seed: The seed.
        name: The canonical name.
        stacked: How many axes in front number layers: each is drawn by itself, as ``name[number, ...]``.
        imaginary: Whether an initialiser of this module is to draw complex numbers.
        out: Memory for it, which an initialiser of this module may draw large arrays into.

    Returns:
        The array, not yet in the parameter's dtype.

    Raises:
        ShapeError: The initialiser has no meaning for the shape, or gives another one.
    """
    if stacked:
        layers = np.ndindex(*shape[:stacked])
        each = [
            draw(function, shape[stacked:], seed=seed, name=f"{name}[{', '.join(map(str, i))}]", imaginary=imaginary)
            for i in layers
        ]
        return np.stack(each).reshape(shape) if each else np.empty(shape)
    if isinstance(function, Initializer):
        return function.parallel(shape, seed, name, imaginary, out)
    result = np.asarray(function(shape, generator(seed, name)))
    if result.shape != shape:
        raise ShapeError(
            f"The initialiser {getattr(function, '__name__', function)!r} gave shape {result.shape} for "
            f"{name!r}, which has {shape}"
        )
    return result


def real_of(dtype: Any) -> Any:
    """The dtype of the parts of complex numbers.

    Args:
        dtype: A complex dtype.

    Returns:
        The real one of half the size.

    >>> real_of(np.dtype("complex64"))
    dtype('float32')
    """
    return np.zeros((), dtype).real.dtype
