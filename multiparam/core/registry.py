"""Which backends there are, which one recognises an object, and which one is selected.

A backend is an entry point of the group ``multiparam.backends`` that names a :class:`BackendInfo`. Ours and a third
party's register alike. Nothing here imports a framework: that is when one of its models is wrapped or built, and
detection looks only at what an object's classes already say.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import BackendMissing, BackendUnknown, Unrecognised
from ..paths import did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from .protocol import Adapter, Array, Host

GROUP = "multiparam.backends"
VARIABLE = "MULTIPARAM_BACKEND"


class BackendInfo:
    """What an adapter package says of itself without importing its framework.

    Args:
        name: The framework's name, as users select it.
        recognises: Root modules whose classes are this backend's models, such as ``("flax",)``.
        arrays: Root modules whose classes are its arrays, such as ``("jax", "jaxlib")``.
        requires: Importable modules it cannot do without, or ``"package.module:function"`` that gives them. The version
            is the first one's.
        adapter: ``"package.module:Class"`` of its :class:`~multiparam.adapter.Adapter`.
        install: The pip line to show when something is missing.
        reads: Suffix of a weight file -> ``"package.module:function"`` that reads one, path -> (name -> array). Such a
            function should import the framework only where the format needs it. A name that ends in ``/`` is a kind of
            folder: ``"orbax/"``, ``"tensorflow/"``.
        writes: Suffix -> ``"package.module:function"`` that writes such a file: (source, path), where the source is a
            :class:`~multiparam.adapter.Host` of a model, to be written in the framework's own names and layouts, or
            name -> array. A suffix that ends in ``/`` is that of a folder, which the function makes: ``".orbax/"``.
        models_only: Those of ``writes`` that cannot hold arrays without a model; their function only gets a host.
        aliases: Other names that users call the framework by, as of a library of layers on top of it.
        prepare: ``"package.module:function"``, called when the backend is selected and before a user's file runs:
            it makes the framework's own import work, where it would not, and imports no framework.

    >>> import multiparam.adapter as mpa
    >>> modules = {"recognises": ("mylib",), "arrays": ("mylib",), "requires": ("mylib",)}
    >>> info = mpa.BackendInfo("mylib", adapter="mylib_adapter:MyAdapter", install="pip install mylib", **modules)
    >>> info.missing(), info.version()
    (['mylib'], None)
    """

    def __init__(
        self,
        name: str,
        *,
        recognises: tuple[str, ...],
        arrays: tuple[str, ...],
        requires: tuple[str, ...] | str,
        adapter: str,
        install: str,
        reads: Mapping[str, str] = MappingProxyType({}),
        writes: Mapping[str, str] = MappingProxyType({}),
        models_only: tuple[str, ...] = (),
        aliases: tuple[str, ...] = (),
        prepare: str = "",
    ) -> None:
        self.name = name
        self.recognises = recognises
        self.arrays = arrays
        self._requires = requires
        self.adapter = adapter
        self.install = install
        self.reads = reads
        self.writes = writes
        self.models_only = models_only
        self.aliases = aliases
        self._prepare = prepare
        self.broken: Exception | None = None
        self._backend: Adapter | None = None

    @property
    def requires(self) -> tuple[str, ...]:
        """The modules it cannot do without."""
        return _named(self._requires)() if isinstance(self._requires, str) else self._requires

    def missing(self) -> list[str]:
        """The required modules that cannot be found; nothing is imported.

        Returns:
            Their names; that of the backend where its registration is broken.
        """
        from importlib.util import find_spec

        if self.broken is not None:
            return [self.name]
        # sys.modules first: find_spec raises for a module that was put there without a spec.
        return [name for name in self.requires if not sys.modules.get(name, name in sys.modules or find_spec(name))]

    def version(self) -> str | None:
        """The installed version of the framework.

        Returns:
            Its distribution's version, ``"unknown version"`` where it has none; None where something is missing.
        """
        from importlib.metadata import PackageNotFoundError, version

        if self.missing():
            return None
        try:
            return version(self.requires[0])
        except PackageNotFoundError:
            return "unknown version"

    def require(self) -> None:
        """See that nothing is missing; imports nothing.

        Raises:
            BackendMissing: Something is, or the registration is broken; the pip line is named.
        """
        if self.broken is not None:
            raise BackendMissing(f"Backend {self.name!r} does not register: {self.broken!r}") from self.broken
        if missing := self.missing():
            raise BackendMissing(
                f"Backend {self.name!r} is not installed ({', '.join(missing)} not found). Try: {self.install}"
            )

    def load(self) -> Adapter:
        """The adapter; its framework is imported here, the first time.

        Returns:
            The same adapter each time.

        Raises:
            BackendMissing: Something is missing, or does not import.
        """
        if self._backend is None:
            self.require()
            try:
                self._backend = _named(self.adapter)()
            except Exception as error:
                raise BackendMissing(
                    f"Backend {self.name!r} is installed but does not import: {type(error).__name__}: {error}"
                ) from error
        return self._backend

    def read(self, path: Path, suffix: str) -> Mapping[str, Array]:
        """The arrays of a weight file.

        Args:
            path: The file.
            suffix: What it is: one of ``reads``; the path need not end so.

        Returns:
            Name -> array, in the file's own names and layouts.

        Raises:
            BackendMissing: The reader, or a framework that it needs, does not import.
        """
        arrays: Mapping[str, Array] = self._function(self.reads[suffix], f"reads {suffix} files")(path)
        return arrays

    def write(self, source: Host | Mapping[str, Array], path: Path, suffix: str) -> None:
        """Write a weight file.

        Args:
            source: A model's host, to be written in the framework's own names and layouts, or name -> array.
            path: Where to.
            suffix: One of ``writes``; the path need not end so.

        Raises:
            BackendMissing: The writer, or a framework that it needs, does not import.
        """
        self._function(self.writes[suffix], f"writes {suffix} files")(source, path)

    def prepare(self) -> None:
        """Make the framework's own import work; it is not imported.

        Raises:
            BackendMissing: What does so does not import.
        """
        if self._prepare:
            self._function(self._prepare, f"prepares the import of {self.name}")()

    def _function(self, where: str, what: str) -> Any:
        try:
            return _named(where)
        except ImportError as error:
            self.require()  # where a whole framework is missing, the pip line says more than this error
            raise BackendMissing(f"{where.partition(':')[0]!r}, which {what}, does not import: {error}") from error

    def __repr__(self) -> str:
        return f"<backend {self.name!r}: {self.version() or 'not installed'}>"


def _named(where: str) -> Any:
    """What ``"package.module:attribute"`` names."""
    from importlib import import_module

    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


class Status(str):
    """A version, or the pip line that would install the backend; true only when installed."""

    installed: bool

    def __new__(cls, info: BackendInfo) -> Status:
        version = info.version()
        self = super().__new__(cls, version or f"not installed. Try: {info.install}")
        self.installed = version is not None
        return self

    def __bool__(self) -> bool:
        return self.installed


@lru_cache(maxsize=1)  # entry points are read from the files of every installed distribution
def registered() -> Mapping[str, BackendInfo]:
    """Every registered backend by name. Two of one name are an error, since nobody could say which is meant."""
    from importlib.metadata import entry_points

    infos: dict[str, BackendInfo] = {}
    origin: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        if point.name in infos:
            if origin[point.name] == point.value:  # one distribution twice on sys.path
                continue
            raise BackendUnknown(
                f"Two packages register a backend named {point.name!r}: {origin[point.name]} and {point.value}. "
                "Uninstall one of them."
            )
        try:
            infos[point.name] = point.load()
        except Exception as error:  # one broken package must not take the others with it
            infos[point.name] = BackendInfo(
                point.name, recognises=(), arrays=(), requires=(), adapter="", install=f"reinstalling {point.value}"
            )
            infos[point.name].broken = error
        origin[point.name] = point.value
    # Ours first, so that a third party's reader of a common suffix does not come before the framework's own.
    order = sorted(infos, key=lambda name: (not infos[name].adapter.startswith("multiparam_"), list(infos).index(name)))
    return {name: infos[name] for name in order}


def backends() -> dict[str, Status]:
    """Every known backend, ours and third parties'. Nothing is imported.

    Returns:
        Name -> its version where installed, else the pip line that would install it; true where it is installed.

    >>> "torch" in backends()
    True
    """
    return {name: Status(info) for name, info in registered().items()}


def info(name: str) -> BackendInfo:
    """The registration of one backend, by its name or an alias. Raises :class:`BackendUnknown` with a suggestion."""
    known = registered()
    if name not in known:
        by_alias = {alias: each for each in known.values() for alias in each.aliases}
        if name in by_alias:
            return by_alias[name]
        raise BackendUnknown(f"No backend named {name!r}. {did_you_mean(name, [*known, *by_alias])}")
    return known[name]


# Two of them: what a process selects holds in every thread, while a context variable does not leave its task.
_process: list[tuple[str, weakref.ref[use]]] = []  # the selections in order; the last one holds
_local: ContextVar[tuple[str, ...]] = ContextVar("multiparam_backend", default=())
_lock = threading.Lock()


class use:
    """Select a backend for :func:`multiparam.build`: for the process, or for a ``with`` block.

    A block selects for its own thread and task only, and the process' selection is what it was.

    Args:
        name: One of :func:`multiparam.backends`, or what its users call it: ``"pytorch"``, ``"flax"``, ``"keras"``.

    Raises:
        BackendUnknown: There is no such backend; the selection stays what it was.
        BackendMissing: It is not installed; likewise.

    >>> with use("torch"):
    ...     selected()
    'torch'
    """

    def __init__(self, name: str) -> None:
        known = info(name)
        known.require()
        known.prepare()
        self.name = name = known.name
        with _lock:
            # One that nobody holds can become no block's any more: only the last of these can hold again.
            dead = [each for each in _process if each[1]() is None]
            _process[:] = [each for each in _process if each not in dead[:-1]]
            _process.append((name, weakref.ref(self)))

    def __enter__(self) -> use:
        # A block is for this context only: the process' selection is again what it is without this one, whatever other
        # threads have selected meanwhile.
        with _lock:
            _process[:] = [each for each in _process if each[1]() is not self]
        _local.set((*_local.get(), self.name))
        return self

    def __exit__(self, *_: object) -> None:
        _local.set(_local.get()[:-1])


def selected(explicit: str | None = None) -> str:
    """The name in force: the argument, a ``with`` block, :class:`use`, the environment, or the only one installed."""
    inside, process = _local.get(), tuple(name for name, _ in _process)
    name = explicit or (inside or process or (os.environ.get(VARIABLE, ""),))[-1]
    if name:
        return info(name).name
    installed = [name for name, status in backends().items() if status]
    if len(installed) == 1:
        return installed[0]
    if not installed:
        lines = "\n".join(f"  {known.install}" for known in registered().values())
        raise BackendMissing(f"No backend is installed. Try one of:\n{lines}")
    raise BackendUnknown(
        f"Several backends are installed ({', '.join(installed)}) and none is selected. "
        f"Say mp.use({installed[0]!r}), pass backend=, or set {VARIABLE}."
    )


def prepare_imports(names: Iterable[str] | None = None) -> None:
    """Make the imports of frameworks work before a user's code runs them.

    Args:
        names: Which backends; unknown ones are for whoever selects them to refuse. None: all.
    """
    for known in registered().values():
        if names is None or {known.name, *known.aliases}.intersection(names):
            with suppress(BackendMissing):  # it is said where the backend is used
                known.prepare()


def readers() -> dict[str, BackendInfo]:
    """suffix -> the backend that reads weight files ending so; the first registered, where several do."""
    return _first_by_suffix(lambda known: known.reads)


def writers() -> dict[str, BackendInfo]:
    """suffix -> the backend that writes weight files ending so; the first registered, where several do."""
    return _first_by_suffix(lambda known: known.writes)


def _first_by_suffix(suffixes: Callable[[BackendInfo], Mapping[str, str]]) -> dict[str, BackendInfo]:
    by_suffix: dict[str, BackendInfo] = {}
    for known in registered().values():
        for suffix in suffixes(known):
            by_suffix.setdefault(suffix, known)
    return by_suffix


def detect(obj: Any) -> BackendInfo:
    """The backend whose framework one of the object's classes comes from, nearest class first.

    The order of the classes matters: a Keras model on the torch backend is also a torch Module, and Keras'
    classes come first. Raises :class:`Unrecognised`.
    """
    roots = {root: known for known in registered().values() for root in known.recognises}
    nearest = None if isinstance(obj, type) else _nearest(obj, roots)
    if nearest is not None:
        return nearest
    kind, name = ("the class", obj.__name__) if isinstance(obj, type) else ("an object of type", type(obj).__qualname__)
    raise Unrecognised(
        f"No backend recognises {kind} {name!r} as a model. Known models come from: {', '.join(sorted(roots))}."
        + (" Pass an instance, not the class." if isinstance(obj, type) else "")
    )


def detect_array(obj: Any) -> BackendInfo | None:
    """The backend whose array an object is, or None."""
    return _nearest(obj, {root: known for known in registered().values() for root in known.arrays})


def _nearest(obj: Any, roots: Mapping[str, BackendInfo]) -> BackendInfo | None:
    for cls in type(obj).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in roots:
            return roots[root]
    return None
