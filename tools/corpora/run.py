"""Foreign pairs: models that others wrote, twice, and whether multiparam moves one's weights into the other.

Of each pair, without any rule: ``mp.transfer`` as it is, with guesses accepted, and with example inputs to verify.
Right is what another project's converter gives, bit for bit, or native outputs that are the same.

    python tools/corpora/run.py --only 'Bert*,timm_kimm/*' --json out.json --markdown out.md

Each section runs in a process of its own, and what is not installed is skipped with a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import report

HERE = Path(__file__).resolve().parent
SECTIONS = ("hf_flax", "hf_tf", "timm_kimm", "torch_flaxmodels", "hf_keras_hub", "gluon_torch", "book", "trained")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow", "PYTHONWARNINGS": "ignore",
}  # fmt: skip


def main() -> int:
    """The command line."""
    options = _options()
    os.environ.update(ENVIRONMENT)
    if options.d2l:
        os.environ["MULTIPARAM_D2L"] = str(Path(options.d2l).resolve())
    if options.worker:
        return _work(*options.worker)
    found: dict[str, Any] = {}
    for section in SECTIONS:
        module = import_module(section)
        names = _chosen(section, module, options.only.split(","))
        if options.list:
            print("\n".join(f"{section}/{name}" for name in names))
        elif reason := lacking(module):
            print(f"{module.TITLE}: skipped, {reason}.")
        elif names:
            found[section] = {"title": module.TITLE, "pairs": {}}
            for name, result in _measured(section, names, options.limit):
                found[section]["pairs"][name] = result
                print(report.progress(section, name, result), file=sys.stderr, flush=True)
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1) + "\n")
            print(report.table(module.TITLE, found[section]["pairs"]), flush=True)
    if found:
        print(report.summary(found))
    if options.markdown:
        options.markdown.write_text(report.markdown(found))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB,...", help="pairs by name, section/name or section")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome there, after each pair")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the summary there as the README has it")
    parser.add_argument("--d2l", metavar="FOLDER", help="a folder with the book's networks: nets_torch.py and others")
    parser.add_argument("--limit", type=float, default=1200, metavar="SECONDS", help="for one section")
    parser.add_argument("--list", action="store_true", help="print the names of the pairs and stop")
    parser.add_argument("--worker", nargs=2, metavar=("SECTION", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _chosen(section: str, module: ModuleType, globs: Sequence[str]) -> list[str]:
    """The pairs of a section that a glob names."""
    names = module.names() if not lacking(module) else []
    return [n for n in names if any(fnmatchcase(each, g) for each in (n, f"{section}/{n}", section) for g in globs)]


def lacking(module: ModuleType) -> str:
    """Why a section cannot run; empty where it can."""
    missing = [name for name in module.NEEDS if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    return module.lacking() if hasattr(module, "lacking") else ""


# -- one process for a section


def _measured(section: str, names: list[str], limit: float) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The outcomes of a section's pairs as they come. A pair that ends the process has failed; the next goes on."""
    left, until = list(names), time.monotonic() + limit
    while left:
        ended = ""
        for line in _lines(section, left, until):
            if isinstance(line, str):
                ended = line
                continue
            left.remove(line[0])
            yield line[0], line[1]
        if left and time.monotonic() > until:
            for name in left:
                yield name, {"pair": ["failed", f"the section's {limit:g} s were over", 0.0]}
            return
        if left:
            yield left.pop(0), {"pair": ["failed", ended or "the process ended", 0.0]}


def _lines(section: str, names: list[str], until: float) -> Iterator[Any]:
    """What a process writes: a name and its outcomes; at last, as a text, how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / "results", Path(folder) / "log"
        results.touch()
        with log.open("w") as output:
            command = [sys.executable, __file__, "--worker", section, str(results)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True)
            assert process.stdin is not None
            process.stdin.write(json.dumps(names))
            process.stdin.close()
            try:
                yield from _followed(process, results, until)
            finally:
                process.kill()
                process.wait()
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [""]
        yield f"the process ended with {process.returncode}: {lines[-1][:160]}"


def _followed(process: subprocess.Popen, results: Path, until: float) -> Iterator[Any]:
    with results.open() as lines:
        running = True
        while running and time.monotonic() < until:
            running = process.poll() is None
            yield from map(json.loads, iter(lines.readline, ""))
            time.sleep(0.1 if running else 0)


def _work(section: str, results: str) -> int:
    """A section's process: measure the pairs that standard input names, a line for each."""
    module = import_module(section)
    for name in json.load(sys.stdin):
        outcome = _outcomes(module.make, name)
        with open(results, "a") as file:
            file.write(json.dumps([name, outcome]) + "\n")
    return 0


def _outcomes(make: Callable[[str], Any], name: str) -> Mapping[str, Any]:
    import traceback

    from pairs import FAILED, Outcome, first_line, measure

    try:
        return measure(make(name))
    except Exception as error:  # the pair could not even be made, or wrapped
        traceback.print_exc()
        return {"pair": Outcome(FAILED, f"{type(error).__name__}: {first_line(error)}")}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    raise SystemExit(main())
