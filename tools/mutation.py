"""Mutation testing of what judges and of what matches: does a test notice each small fault? ``make mutation`` prints
the score.

mutmut plants the faults, one at a time, in a copy of the core, and runs those of the quick tests, which need no
framework, that reach it. The exit status is 1 where of a module's faults fewer are noticed than the bar says. What is
missed is shown as a diff. Counted apart are faults in nothing but a text, and those listed here as harmless.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
BAR = 0.95
# What matches, by functions, and its tests: recorded names, kinds and shapes.
MATCHERS: Mapping[str, Sequence[str]] = {
    "multiparam/transfers/containers.py": ["*"],
    "multiparam/transfers/names.py": ["*"],
    "multiparam/transfers/match.py": ["*"],
    "multiparam/transfers/ranking.py": ["*"],
    "multiparam/transfers/regroup.py": ["*"],
}
MATCHING_TESTS: Mapping[str, set[str]] = {
    "tests/transfers/test_containers.py": set(),
    "tests/transfers/test_evidence.py": set(),
    "tests/transfers/test_regrouping.py": set(),
    "tests/transfers/test_manifests.py": set(),
}
# What judges, by functions; Class.method for a class' own.
JUDGES: Mapping[str, Sequence[str]] = {
    "multiparam/core/distances.py": ["*"],
    "multiparam/comparison/judge.py": ["*"],
    "multiparam/comparison/divergence.py": ["*"],
    "multiparam/comparison/noise.py": ["*"],
    "multiparam/comparison/activations.py": ["*"],
    "multiparam/comparison/models.py": ["*"],
    "multiparam/comparison/pairs.py": ["*"],
    "multiparam/comparison/by_plan.py": ["*"],
    "multiparam/comparison/settling.py": ["*"],
    "multiparam/comparison/results.py": ["*"],
    "multiparam/comparison/networks.py": ["judge_networks", "label_columns", "_follow"],
    "multiparam/comparison/config.py": [
        "KnownDifference.covers",
        "accept_known",
        "_accepted",
        "_differences",
        "_outlived",
    ],
}
# The tests: all of a file, or those that use one of some names.
TESTS: Mapping[str, set[str]] = {
    "tests/comparison/test_judging.py": set(),
    "tests/comparison/test_config.py": {"accept_known", "verdicts"},
    "tests/comparison/test_noise.py": {"runs", "by_moves", "runs_from"},
}
FUNCTIONS = {**JUDGES, **MATCHERS}
GROUPS = ((JUDGES, TESTS), (MATCHERS, MATCHING_TESTS))
BESIDE = ("tests/support", "tests/transfers/manifests")  # what tests read or import
CONFIG = """
[tool.mutmut]
source_paths = ["multiparam"]
only_mutate = {modules}
also_copy = ["conftest.py", "tests"]
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 2.0
timeout_constant = 2.0
use_git_change_detection = false
"""

DEFAULT, COPY = "it is the default", "it costs a copy, and is the same"
NO_OBJECTS = "a digest is made before, which refuses objects"
ONE_EACH = "both are made with as many"
CHECKED = "the lengths have been compared"
# Changes that nobody need notice, by function ("*": any), what was there and what is, as ast.unparse writes it: why.
HARMLESS: Mapping[tuple[str, str, str], str] = {
    ("*", "float('inf')", "float('INF')"): "it is the same number",
    ("*", "astype(np.float64)", "astype(None)"): DEFAULT,
    ("*", ", strict=False", ""): DEFAULT,
    ("*", "strict=False", "strict=None"): DEFAULT,
    ("*", "reshape(-1)", "reshape(-2)"): "to numpy any number below zero is the rest",
    ("*", ", copy=False", ""): COPY,
    ("*", "copy=False", "copy=True"): COPY,
    ("distance", ", out=a", ""): COPY,
    ("distance", "out=a", "out=None"): COPY,
    ("distance", "b.min(initial=0)", "b.min(initial=1)"): "what is above zero is never the largest below it",
    ("digest", "reshape(-1)", "reshape(None)"): "the bytes have one order in any shape",
    ("ActivationCache._on_disk", ", allow_pickle=False", ""): NO_OBJECTS,
    ("ActivationCache._on_disk", "allow_pickle=False", "allow_pickle=None"): NO_OBJECTS,
    ("ActivationCache._on_disk", "allow_pickle=False", "allow_pickle=True"): NO_OBJECTS,
    ("Follower.on_call", "self._diverging.index < i", "self._diverging.index <= i"): "each call is seen once",
    ("_follow", "outputs_agree=False", "outputs_agree=None"): "it is as false",
    ("_subjects", "next(iter(models), '')", "next(iter(models), None)"): "it names no model either",
    ("_subjects", "next(iter(models), '')", "next(iter(models), 'XXXX')"): "it names no model either",
    ("ReferenceJudge._judge_parameters", "pair.histograms +=", "pair.histograms ="): "it is the first to add some",
    ("ReferenceJudge._judge_parameters", "pair.hints +=", "pair.hints ="): "it is the first to add some",
    ("ReferenceJudge.judge", "not pair.agrees and any", "not pair.agrees or any"): "the plan without it is the same",
    ("ReferenceJudge._rounding", "return 0.0", "return 1.0"): "one eps is always within the bound",
    ("settle_zeros", ", None)", ")"): "there is always one",
    ("same_value", "0.0) >", "0.0) >="): "of one dtype either may be first",
    ("same_value", "1.0)", "2.0)"): "no eps is as large",
    ("settle_layers", ", None)", ")"): "there is always one",
    ("settle_options", ", None)", ")"): "there is always one",
    ("moved", "default_rng(0)", "default_rng(1)"): "other numbers are as good",
    ("moved", "1 + size", "1 - size"): "moves go both ways alike",
    ("largest", "(0.0, '')", "(0.0, 'XXXX')"): "nothing is beyond its bound by 0",
    ("small", "default=0.0", "default=1.0"): "without gradients none is measured",
    ("assignment", ", strict=True", ""): ONE_EACH,
    ("assignment", "strict=True", "strict=None"): ONE_EACH,
    ("assignment", "strict=True", "strict=False"): ONE_EACH,
    ("by_words", "gain < GAIN", "gain <= GAIN"): "GAIN is no more exact than that",
    ("_common", "len(b) + 1", "len(b) + 2"): "what is beyond the end is zero, and never read",
    ("_numbering", "numbers < others", "numbers <= others"): "equal numbers have been left out",
    ("_numbering", "others < numbers", "others <= numbers"): "equal numbers have been left out",
    ("without_containers", ", strict=True", ""): ONE_EACH,
    ("without_containers", "strict=True", "strict=None"): ONE_EACH,
    ("without_containers", "strict=True", "strict=False"): ONE_EACH,
    ("_outputs_distance", ", strict=True", ""): CHECKED,
    ("_outputs_distance", "strict=True", "strict=None"): CHECKED,
    ("_outputs_distance", "strict=True", "strict=False"): CHECKED,
}


class Mutant:
    """One fault: the function that it is in before and after, and what became of it."""

    def __init__(self, module: str, function: str, before: ast.AST, after: ast.AST, status: str) -> None:
        self.module = module
        self.function = function
        self.status = status
        self.noticed = status in ("killed", "timeout")  # a test failed, or never ended
        self._before, self._after = before, after

    @cached_property
    def diff(self) -> list[str]:
        """The lines that it changes, before and after."""
        texts = (ast.unparse(node).splitlines() for node in (self._before, self._after))
        lines = difflib.unified_diff(*texts, lineterm="", n=0)
        return [line for line in lines if not line.startswith(("---", "+++", "@@"))]

    @cached_property
    def in_text(self) -> bool:
        """Whether it is in nothing but a text."""
        before, after = (ast.dump(Blank().visit(ast.parse(ast.unparse(node)))) for node in (self._before, self._after))
        return before == after

    @cached_property
    def harmless(self) -> str:
        """Why nobody need notice, where nobody does."""
        if self.noticed or len(self.diff) != 2:
            return ""
        before, after = (line[1:] for line in self.diff)
        for (function, was, is_now), why in HARMLESS.items():
            if function in ("*", self.function) and after in replaced(before, was, is_now):
                return why
        return ""

    def __str__(self) -> str:
        where = f"{self.status}: {self.function} in {self.module}" + (", a text" if self.in_text else "")
        return "\n".join([where, *(f"    {line[0]} {line[1:].strip()}" for line in self.diff)])


class Blank(ast.NodeTransformer):
    """Makes all texts the same."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node


def replaced(line: str, was: str, is_now: str) -> list[str]:
    """The line with each of the places where something stands changed by itself."""
    return [line[: at.start()] + is_now + line[at.end() :] for at in re.finditer(re.escape(was), line)]


# -- a copy of the core, and mutmut in it


def copied(folder: Path, modules: Sequence[str], of_tests: Mapping[str, set[str]]) -> None:
    """The core, the tests and a configuration in a folder of their own."""
    shutil.copytree(ROOT / "multiparam", folder / "multiparam", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", *of_tests):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for module in modules:
        path = folder / module
        path.write_text(undecorated(path.read_text("utf-8")), "utf-8")
    config = CONFIG.format(modules=json.dumps(modules), tests=json.dumps([*tests(of_tests)]))
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text("utf-8") + config, "utf-8")


def tests(of_tests: Mapping[str, set[str]]) -> Iterator[str]:
    """The tests to run, as pytest names them."""
    for path, wanted in of_tests.items():
        if not wanted:
            yield path
        for node in ast.parse((ROOT / path).read_text("utf-8")).body if wanted else ():
            names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and names & wanted:
                yield f"{path}::{node.name}"


def undecorated(source: str) -> str:
    """The same with properties that are made after the method: mutmut leaves alone what has a decorator."""
    lines = source.splitlines()
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    methods = [node for each in classes for node in each.body if isinstance(node, ast.FunctionDef)]
    for node in reversed(methods):  # from below, as lines are counted from above
        for each in node.decorator_list:
            if isinstance(each, ast.Name) and each.id in ("property", "cached_property"):
                lines.insert(node.end_lineno or 0, f"{' ' * node.col_offset}{node.name} = {each.id}({node.name})")
                del lines[each.lineno - 1]
    return "\n".join(lines) + "\n"


def run(folder: Path, modules: Sequence[str], jobs: int) -> None:
    """Plant the faults of these modules. What mutmut says is seen on a terminal, or where it fails."""
    names = [f"{dotted(module)}.{mangled(name)}__mutmut_*" for module in modules for name in FUNCTIONS[module]]
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *names]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
    out = None if sys.stdout.isatty() else subprocess.PIPE
    done = subprocess.run(command, cwd=folder, env=environment, check=False, text=True, stdout=out, stderr=out)
    if done.returncode:
        raise SystemExit(f"mutmut did not come to its end.\n{(done.stdout or '')[-8000:]}{done.stderr or ''}")


def dotted(module: str) -> str:
    return module.removesuffix(".py").replace("/", ".")


def mangled(function: str) -> str:
    """A function's name as mutmut makes it."""
    owner, _, name = function.rpartition(".")
    return name if name == "*" else f"xǁ{owner}ǁ{name}" if owner else f"x_{name}"


# -- what it found


def found(folder: Path, module: str) -> list[Mutant]:
    """The faults of a module and what became of each."""
    from mutmut.stats import status_by_exit_code

    path = folder / "mutants" / module
    codes = json.loads(path.with_name(f"{path.name}.meta").read_text("utf-8"))["exit_code_by_key"]
    functions = {node.name: node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if _is_function(node)}
    mutants = []
    for key, code in codes.items():
        name = key.rpartition(".")[2]
        mangled = name.partition("__mutmut_")[0]
        function = mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        if any(fnmatchcase(function, judge) for judge in FUNCTIONS[module]):
            before, after = functions[f"{mangled}__mutmut_orig"], functions[name]
            before.name = after.name = function.rpartition(".")[2]
            mutants.append(Mutant(module, function, before, after, status_by_exit_code[code]))
    return mutants


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef)


TITLES = ("mutants", "faults", "noticed", "missed", "score", "harmless", "texts")


def row(title: str, mutants: Sequence[Mutant]) -> str:
    """A line of the table. Texts, and those of them that are noticed, are no part of the score."""
    real = faults(mutants)
    texts = [each for each in mutants if each.in_text and not each.harmless]
    noticed, of_texts = (sum(each.noticed for each in some) for some in (real, texts))
    harmless = len(mutants) - len(real) - len(texts)
    counts = (len(mutants), len(real), noticed, len(real) - noticed, f"{score(mutants):.1%}", harmless)
    return line(title, (*counts, f"{of_texts} of {len(texts)}"))


def line(title: str, columns: Sequence[object]) -> str:
    return f"{title:36}" + "".join(f"{each:>12}" for each in columns)


def faults(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Those that somebody should notice."""
    return [each for each in mutants if not each.in_text and not each.harmless]


def score(mutants: Sequence[Mutant]) -> float:
    """The share of faults that is noticed."""
    real = faults(mutants)
    return sum(each.noticed for each in real) / len(real) if real else 1.0


def main() -> int:
    """What is missed, the table and the score; exit status 0 where each module's is above the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="parts of the names of modules; all, where there is none")
    parser.add_argument("--jobs", type=int, default=2, help="how many faults are looked at together")
    asked = parser.parse_args()
    wanted = [module for module in FUNCTIONS if any(part in module for part in asked.modules or [""])]
    if not wanted:
        parser.error(f"none of {', '.join(FUNCTIONS)} is of such a name")
    start = time.perf_counter()
    mutants: dict[str, list[Mutant]] = {}
    for functions, of_tests in GROUPS:
        modules = [module for module in functions if module in wanted]
        if modules:
            with tempfile.TemporaryDirectory(prefix="multiparam-mutation-") as name:
                copied(Path(name), modules, of_tests)
                run(Path(name), modules, asked.jobs)
                mutants |= {module: found(Path(name), module) for module in modules}
    everything = [each for of_module in mutants.values() for each in of_module]
    missed = [each for each in everything if not each.noticed and not each.harmless]
    print(*missed, "", sep="\n\n")
    print(line("", TITLES), *(row(module, each) for module, each in mutants.items()), row("all", everything), sep="\n")
    seconds = time.perf_counter() - start
    print(f"{len(everything)} mutants in {seconds:.0f} s; the bar is {BAR:.0%} of the faults of each module.")
    return 0 if all(score(each) >= BAR for each in mutants.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
