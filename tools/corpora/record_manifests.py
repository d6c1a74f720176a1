"""Manifests of foreign pairs as small JSON files, for the tests of matching: names, kinds, shapes, no values.

    python tools/corpora/record_manifests.py --only 'Bert*' --into tests/transfers/manifests

The right pairing is another project's converter's, or that of a transfer whose native outputs were the same. A file
that is there keeps its counts of matches that are certain.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

from pairs import Pair, first_line
from run import ENVIRONMENT, SECTIONS, lacking

import multiparam as mp
from multiparam.core.group import store_of
from multiparam.paths import split
from multiparam.transfers.manifest import manifest_of

INTO = Path(__file__).resolve().parents[2] / "tests" / "transfers" / "manifests"
Names = Mapping[str, str]
# What layers of classes that multiparam does not know may call a norm's leaves
SYNONYMS = {"weight": "scale", "running_mean": "mean", "running_var": "var"}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB,...", help="pairs by name, section/name or section")
    parser.add_argument("--into", type=Path, default=INTO, metavar="FOLDER", help="where the files go")
    parser.add_argument("--d2l", metavar="FOLDER", help="a folder with the book's networks")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT | ({"MULTIPARAM_D2L": options.d2l} if options.d2l else {}))
    options.into.mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        module = import_module(section)
        if lacking(module):
            continue
        for name in getattr(module, "RECORDED", ()):
            if any(fnmatchcase(each, glob) for each in (name, section) for glob in options.only.split(",")):
                _record(module, name, options.into / f"{section}_{name.replace('/', '_')}.json")
    return 0


def _record(module: Any, name: str, path: Path) -> None:
    try:
        found = recorded(module.make(name))
    except Exception as error:
        traceback.print_exc()
        print(f"{path.name}: not recorded, {error}")
        return
    before = json.loads(path.read_text()) if path.exists() else {}
    found |= {"certain": before.get("certain", 0), "varied": before.get("varied", {})}
    path.write_text(compact(found))
    print(f"{path.name}: {len(found['pairs'])} pairs, {path.stat().st_size} bytes", file=sys.stderr)


def recorded(pair: Pair) -> dict[str, Any]:
    """Both sides of a pair and the right pairing between them. Raises ValueError where nothing says what is right."""
    target = pair.target()
    pairs = pair.truth(target) if pair.truth else _proved(pair)
    names = scope_names(target, pair.example_of(target))
    sides = side(pair.source, pair.inputs, {}), side(target, pair.example_of(target), names)
    return {"source": sides[0], "target": sides[1], "pairs": {names.get(name, name): of for name, of in pairs.items()}}


def _proved(pair: Pair) -> dict[str, Any]:
    """What a transfer paired whose native outputs were the same: by guesses, or by the order of execution."""
    said = {}
    for attempt, options in (("guesses", {}), ("with inputs", {"verify": pair.inputs}), ("execution", {})):
        target = pair.target()
        try:
            rules = by_execution(pair, target) if attempt == "execution" else None
            report = mp.transfer(pair.source, target, rules, accept_guesses=True, **options)
        except mp.MultiparamError as error:
            said[attempt] = first_line(error)
            continue
        said[attempt] = pair.judge(target)
        if not said[attempt]:
            return {move.target: list(move.sources) for move in report.plan.moves if move.sources}
    target = pair.target()
    pairs = copied(pair, target)
    said["copied"] = pair.judge(target)
    if not said["copied"]:
        return pairs
    raise ValueError(f"no transfer is right: {said}")


def copied(pair: Pair, target: mp.Model) -> dict[str, Any]:
    """Copy, leaf by leaf, what runs in the same order; what went where."""
    found, pairs = in_order(pair, target), {}
    sources = {**pair.source.parameters(aliases=True), **pair.source.buffers(aliases=True)}
    targets = {**target.parameters(aliases=True), **target.buffers(aliases=True)}
    for name, p in sources.items():
        layer, leaf = split(name)
        for word in (leaf, SYNONYMS.get(leaf, leaf), "alpha"):
            to = f"{found.get(layer, '')}.{word}"
            if layer in found and to in targets and targets[to].numpy().size == p.numpy().size:
                targets[to].assign(p.numpy().reshape(targets[to].shape))
                pairs[to] = name
                break
    return pairs


def by_execution(pair: Pair, target: mp.Model) -> Callable[[str], str]:
    """Rules that pair layers of the same shapes in the order in which they run."""
    found = in_order(pair, target)

    def rename(name: str) -> str:
        layer, leaf = split(name)
        return f"{found[layer]}.{leaf}" if layer in found else name

    return rename


def in_order(pair: Pair, target: mp.Model) -> dict[str, str]:
    """source layer -> the target layer of the same shapes that runs when it does."""
    queues: dict[Any, list[str]] = {}
    for layer in executed(target, pair.example_of(target)):
        queues.setdefault(shapes(target, layer), []).append(layer)
    found = {}
    for layer in executed(pair.source, pair.inputs):
        queue = queues.get(shapes(pair.source, layer))
        if queue:
            found[layer] = queue.pop(0)
    return found


def executed(net: mp.Model, inputs: Any) -> list[str]:
    """The layers with parameters in the order of their first calls."""
    return list(dict.fromkeys(call.layer for call in net.activations(*inputs)))


def shapes(net: mp.Model, layer: str) -> Any:
    """What an array of a layer must look like in the other model; unit axes do not count."""
    listed = {**net.parameters(aliases=True), **net.buffers(aliases=True)}
    leaves = [p.shape for name, p in listed.items() if split(name)[0] == layer and p.dtype.startswith("float")]
    return tuple(sorted(tuple(n for n in shape if n != 1) for shape in leaves))


# -- one side


def side(net: Any, inputs: tuple[Any, ...] | None, names: Names) -> dict[str, Any]:
    """A manifest as JSON has it; ``names`` are those that some of the model's parameters are to be called by."""
    manifest = manifest_of(net)
    layers: dict[str, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    renamed: dict[str, str] = {}  # layer -> the name it is recorded by
    for layer, leaves in manifest.layers.items():
        for leaf, entry in leaves.items():
            new = split(names.get(entry.name, entry.name))[0]
            renamed.setdefault(layer, new)
            spec = entry.spec
            layers.setdefault(new, {})[leaf] = [list(spec.shape), spec.dtype, int(entry.buffer)]
            if (layer, leaf) in manifest.kinds:
                kinds.setdefault(new, manifest.kinds[layer, leaf])
    ties = [[names.get(name, name) for name in tied] for tied in manifest.ties()]
    found = {
        "title": manifest.title,
        "order": manifest.order,
        "layers": layers,
        "kinds": kinds,
        "options": {renamed.get(layer, layer): options for layer, options in manifest.options.items()},
        "execution": _execution(net, inputs, renamed, list(layers)),
    }
    return found | ({"ties": ties} if ties else {})


def _execution(net: Any, inputs: tuple[Any, ...] | None, renamed: Names, layers: list[str]) -> list[int] | None:
    """The layers in the order in which they run, by their number among the layers; None where that is not known."""
    if inputs is None or not isinstance(net, mp.Model):
        return None
    try:
        calls = net.activations(*inputs)
    except Exception as error:
        print(f"  order of execution not known: {error}", file=sys.stderr)
        return None
    called = dict.fromkeys(renamed.get(call.layer, call.layer) for call in calls)
    return [layers.index(layer) for layer in called if layer in layers]


def scope_names(net: mp.Model, inputs: tuple[Any, ...] | None) -> dict[str, str]:
    """A linen model's present names -> those of its variables tree: a scope's path joined with dots, then the canonical
    leaf. Of a Sequential, ``layers_2`` is ``2``. Empty for every other model."""
    if net.backend != "jax" or not hasattr(net.native, "apply"):
        return {}
    from flax import linen

    sequences = set()

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, linen.Sequential):
            sequences.add(context.module.path)
        return call(*args, **kwargs)

    if inputs is not None:
        with linen.intercept_methods(look):
            net(*inputs)
    found = {}
    table = store_of(net).table
    for name, slot in zip(table.names, table.slots, strict=True):
        scope = tuple((slot.options_layer if slot.kind in ("attention", "lstm", "gru") else slot.owner)[1:])
        shown = [
            segment.removeprefix("layers_") if scope[:at] in sequences else segment for at, segment in enumerate(scope)
        ]
        found[name] = ".".join([*shown, slot.path[-1]])
    return found


def compact(found: Mapping[str, Any]) -> str:
    """JSON with a line for each layer: small, and readable in a diff."""

    def block(value: Mapping[str, Any], indent: str) -> str:
        rows = (f"{indent} {json.dumps(key)}:{_small(each)}" for key, each in value.items())
        return "{\n" + ",\n".join(rows) + "\n" + indent + "}"

    parts = []
    for name in ("source", "target"):
        rows = ((key, block(v, " ") if key == "layers" else _small(v)) for key, v in found[name].items())
        parts.append(f'"{name}":' + "{\n" + ",\n".join(f' "{key}":{text}' for key, text in rows) + "\n}")
    parts.append('"pairs":' + block(found["pairs"], ""))
    parts += [f'"{name}":{_small(found[name])}' for name in ("certain", "varied")]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _small(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


if __name__ == "__main__":
    raise SystemExit(main())
