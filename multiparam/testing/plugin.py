"""The kit's pytest plugin, loaded by its entry point in every project that has multiparam installed.

It does nothing there but for the kit's own tests: ``--backend``, ``--slow`` and ``--conformance`` are offered only
where the project has no options of these names (``--multiparam-backend`` etc. always), and its marks and its
``backend`` fixture reach only the kit, and the tests of a project that says ``multiparam_fixtures = true``.
Nothing is imported until it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conformance import Entry

KIT = "multiparam.testing."
SOAK = "soak"
PROBLEM = pytest.StashKey[tuple[str, str]]()  # a test, and what is wrong with the list
pytest.register_assert_rewrite(f"{KIT}networks", f"{KIT}architectures", f"{KIT}sequences")

OPTIONS: dict[str, dict[str, Any]] = {
    "backend": {
        "action": "append",
        "default": [],
        "metavar": "NAME",
        "help": "Test this multiparam backend; repeatable. It must be installed.",
    },
    "slow": {"action": "store_true", "help": "Run the tests marked slow too (multiparam)."},
    "conformance": {
        "metavar": "FILE",
        "help": "Expected failures and skips of the conformance kit: TOML tables [xfail] and [skip], test = reason.",
    },
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("multiparam_fixtures", "Give this project's tests the kit's backend fixture and marks.", "bool")
    parser.addini("multiparam_conformance", "The file for --conformance, seen from the root directory.")


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Generator[None, Any, Any]:
    """After the project's own conftests: its options go first."""
    result = yield
    group = parser.getgroup("multiparam", "multiparam: conformance of backends")
    for name, about in OPTIONS.items():
        names = [f"--multiparam-{name}", *([f"--{name}"] if _free(parser, f"--{name}") else [])]
        group.addoption(*names, dest=f"multiparam_{name}", **about)
    return result


def _free(parser: pytest.Parser, option: str) -> bool:
    try:
        return option in parser.parse_known_and_unknown_args([option])[1]
    except (pytest.UsageError, SystemExit):  # one that wants a value
        return False


def _option(config: pytest.Config, name: str) -> Any:
    return config.getoption(f"multiparam_{name}", None)


def named_backends(config: pytest.Config) -> list[str]:
    """The backends named by ``--backend``, or by the environment. Raises UsageError for one that is not installed."""
    from ..core import registry
    from ..errors import MultiparamError

    named = list(_option(config, "backend") or [])
    if not named and os.environ.get(registry.VARIABLE):
        named = [os.environ[registry.VARIABLE]]
    for name in named:
        try:
            registry.info(name).require()
        except MultiparamError as error:
            raise pytest.UsageError(str(error)) from None
    return named


def tested(config: pytest.Config) -> list[str]:
    """The backends under test: those named, or all that are installed."""
    from ..core import registry

    return named_backends(config) or [name for name, status in registry.backends().items() if status]


@pytest.hookimpl(tryfirst=True)  # before hypothesis' own, which loads the profile
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "multiparam_feature(name, ...): fails where a backend declares one unsupported")
    if config.getini("multiparam_fixtures"):
        config.addinivalue_line("markers", "slow: takes more than a few seconds; run with --slow")
        config.addinivalue_line("markers", "needs(name, ...): skip where a backend or a package is not installed")
    if _option(config, "backend"):
        named_backends(config)
    if config.getoption("--hypothesis-profile", None) == SOAK:
        _register_soak()
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(), "multiparam-summary")


def _register_soak() -> None:
    """The long run: 10,000 examples of each property, others each time."""
    from hypothesis import HealthCheck, settings
    from hypothesis.errors import InvalidArgument

    try:
        settings.get_profile(SOAK)  # a project may have one of its own
    except InvalidArgument:
        settings.register_profile(
            SOAK, max_examples=10_000, deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow]
        )


def _kit(module: Any) -> bool:
    return str(getattr(module, "__name__", "")).startswith(KIT)


def _ours(config: pytest.Config, module: Any) -> bool:
    return _kit(module) or bool(config.getini("multiparam_fixtures"))


def verb(item: pytest.Item) -> str:
    """What a test of the kit is about: its module's name."""
    return item.path.stem.removeprefix("test_")


def _backend(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("backend", "")) if callspec is not None else ""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames or not _ours(metafunc.config, metafunc.module):
        return
    from ..core import registry

    named = named_backends(metafunc.config)
    cases = []
    for name, status in registry.backends().items():
        if named and name not in named:
            continue
        marks = [] if status else [pytest.mark.skip(reason=f"{name}: {status}")]
        if metafunc.config.pluginmanager.hasplugin("xdist"):
            marks.append(pytest.mark.xdist_group(name))
        cases.append(pytest.param(name, id=name, marks=marks))
    metafunc.parametrize("backend", cases)


@pytest.hookimpl(tryfirst=True)  # before -k and -m leave tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if _ours(config, getattr(item, "module", None))]
    for item in ours:
        if item.get_closest_marker("slow") and not _option(config, "slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
        for marker in item.iter_markers("needs"):
            for name in marker.args:
                _need(config, item, name)
    kit = [item for item in ours if _kit(getattr(item, "module", None))]
    for item in kit:
        item.user_properties += [("multiparam_verb", verb(item)), ("multiparam_backend", _backend(item))]
    if kit:
        _expect_listed(config, kit)


def _need(config: pytest.Config, item: pytest.Item, name: str) -> None:
    """Skip where a backend, or a module, is not there or not asked for."""
    from importlib.util import find_spec

    from ..core import registry

    named, status = named_backends(config), registry.backends().get(name)
    if status is None:
        if find_spec(name) is None:
            item.add_marker(pytest.mark.skip(reason=f"{name} is not installed"))
    elif named and name not in named:
        item.add_marker(pytest.mark.skip(reason=f"--backend does not name {name}"))
    elif not status:
        item.add_marker(pytest.mark.skip(reason=f"{name}: {status}"))


# -- what is expected to fail


def _expect_listed(config: pytest.Config, kit: Sequence[pytest.Item]) -> None:
    """Mark what the project's list names."""
    from ..errors import MultiparamError
    from .conformance import unused

    try:
        entries = _listed(config)
    except MultiparamError as error:
        return _complain(config, kit, str(error))
    tests = [f"{item.path.name}::{item.name}" for item in kit]
    for entry in entries:
        for item, test in zip(kit, tests, strict=True):
            if entry.fits(test):
                mark = pytest.mark.xfail(reason=entry.reason, strict=True)
                item.add_marker(mark if entry.table == "xfail" else pytest.mark.skip(reason=entry.reason))
    whole = {path.name for path in Path(__file__).parent.glob("test_*.py")} == {item.path.name for item in kit}
    lost = unused(entries, tests) if whole and not any("::" in arg for arg in config.args) else []
    if lost:
        _complain(config, kit, f"The conformance list has entries that fit no test: {', '.join(map(repr, lost))}")


def _complain(config: pytest.Config, kit: Sequence[pytest.Item], text: str) -> None:
    """An error of usage; xdist's workers cannot end with one, so there a test fails with it."""
    if not hasattr(config, "workerinput"):
        raise pytest.UsageError(text)
    config.stash[PROBLEM] = kit[0].nodeid, text


def _listed(config: pytest.Config) -> list[Entry]:
    from .conformance import read

    option, setting = _option(config, "conformance"), str(config.getini("multiparam_conformance") or "")
    if option:
        return read(config.invocation_params.dir / option)
    return read(config.rootpath / setting) if setting else []


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest looks for xfail marks
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    if _ours(item.config, getattr(item, "module", None)):
        _expect_declared(item)
    result = yield
    test, problem = item.config.stash.get(PROBLEM, ("", ""))
    if problem and item.nodeid == test:
        pytest.fail(problem, pytrace=False)
    return result


def _expect_declared(item: pytest.Item) -> None:
    """A strict xfail where the backend declares that it cannot do something; it is loaded only now."""
    from ..core import registry

    wanted = [name for marker in item.iter_markers("multiparam_feature") for name in marker.args]
    backend = _backend(item)
    if wanted and backend:
        declared = registry.info(backend).load().unsupported
        for name in wanted:
            if name in declared:
                reason = f"{backend} declares {name!r}: {declared[name]}"
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


# -- the report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _kit(getattr(item, "module", None)):
        text = f"{verb(item)} is not what it should be in backend {_backend(item) or 'any'!r}: {item.name}"
        report.sections.append(("multiparam", text))
    return report


class Summary:
    """The kit's part of pytest's summary: per backend, how many tests of each verb hold, and what does not."""

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        backends: dict[str, dict[str, list[int]]] = {}
        notes: dict[str, dict[str, int]] = {}
        failed: list[str] = []
        for outcome in ("passed", "failed", "error", "xfailed", "xpassed"):
            for report in terminalreporter.stats.get(outcome, ()):
                properties = dict(getattr(report, "user_properties", ()))
                if "multiparam_verb" not in properties:
                    continue
                where, what = str(properties["multiparam_backend"] or "all"), str(properties["multiparam_verb"])
                count = backends.setdefault(where, {}).setdefault(what, [0, 0])
                count[0] += outcome == "passed"
                count[1] += outcome != "xfailed"
                if outcome == "xfailed":
                    reasons = notes.setdefault(where, {})
                    reasons[report.wasxfail] = reasons.get(report.wasxfail, 0) + 1
                elif outcome != "passed":
                    failed.append(f"{what}, backend {where}: {report.nodeid.rpartition('/')[2]}")
        if backends:
            self._write(terminalreporter, backends, notes, failed)

    def _write(
        self,
        out: Any,
        backends: dict[str, dict[str, list[int]]],
        notes: dict[str, dict[str, int]],
        failed: list[str],
    ) -> None:
        out.write_sep("=", "multiparam conformance")
        for where, verbs in sorted(backends.items()):
            counts = ", ".join(f"{what} {good}/{of}" for what, (good, of) in sorted(verbs.items()))
            out.write_line(f"{where}: {counts}")
            for reason, count in notes.get(where, {}).items():
                out.write_line(f"  expected to fail, {count} test{'s' * (count > 1)}: {reason}")
        for line in failed:
            out.write_line(f"FAILS {line}")


# -- fixtures


@pytest.fixture
def multiparam_peers(request: pytest.FixtureRequest) -> list[str]:
    """The backends under test, to exchange arrays and weights with."""
    return tested(request.config)
