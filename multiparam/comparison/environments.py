"""Where models run: versions, processors and settings, and what of it may be why two of them disagree."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any, Protocol

from ..core import registry

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # sums are split by the number of threads
NOTHING = "not set"


class Placed(Protocol):
    """What ran somewhere. ``settings``: of its framework, that are not the defaults."""

    backend: str
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]


@lru_cache
def environment() -> Mapping[str, Any]:
    """Python, the machine's kind and the versions of what matters here, as plain data."""
    known = [registry.info(backend) for backend in registry.backends()]
    packages = {}
    for package in dict.fromkeys(["numpy", *(each for info in known for each in (*info.requires, *info.recognises))]):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "packages": packages,
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between the environments of a reference and of a candidate, in words.

    >>> differences({"python": "3.11", "packages": {"numpy": "1.26"}}, {"python": "3.12", "packages": {"jax": "0.7"}})
    ['python is 3.11 there, 3.12 here']
    """
    before, after = dict(_flat(there)), dict(_flat(here))
    # A package, or a fact that one side's version of multiparam does not write down, says nothing where it is missing.
    return [
        f"{name} is {before.get(name, NOTHING)} there, {after.get(name, NOTHING)} here"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name) and (name in VARIABLES or (name in before and name in after))
    ]


def _flat(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in environment.items():
        if isinstance(value, Mapping):
            yield from value.items()
        elif name != "name":
            yield name, value


def possible_causes(reference: Placed, candidate: Placed) -> list[str]:
    """What of where two models ran may be why they disagree, in one sentence, if anything: what differs there, and
    settings that are not a framework's defaults, but for those that both have."""
    causes = differences(reference.environment, candidate.environment)
    for side, subject, other in (("there", reference, candidate), ("here", candidate, reference)):
        shared = other.settings if other.backend == subject.backend else {}
        for name, value in subject.settings.items():
            if name not in shared or shared[name] != value:
                causes.append(f"{subject.backend}'s {name} is {value!r} {side}")
    return ["it may be where they ran: " + "; ".join(causes)] if causes else []
