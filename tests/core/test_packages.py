"""Optional packages: what needs one says the pip line where it is missing, and nothing else needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multiparam import errors
from multiparam.core.packages import require

GOLDEN = Path(__file__).parents[1] / "comparison" / "golden" / "networks.safetensors"
OPTIONAL = ("sklearn", "rich", "jinja2", "jsonschema", "typer")
CLI, COMPARE = 'pip install "multiparam[cli]"', 'pip install "multiparam[compare]"'
NEEDS = {
    "sklearn": ("from multiparam.comparison.zoo import iris; iris()", COMPARE),
    "rich": ("from multiparam.comparison.reports.console import console_for; console_for('')", CLI),
    "jinja2": (
        "from multiparam.comparison.reports.html.page import to_html; to_html({'pairs': [], 'agrees': True})",
        CLI,
    ),
    "jsonschema": (f"from multiparam.comparison.recording import open_recording; open_recording({str(GOLDEN)!r})", CLI),
}


def test_an_installed_package_is_given() -> None:
    assert require("json.decoder", "Reading", "pip install python") is sys.modules["json.decoder"]


def test_a_broken_package_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in (("lacking", "import no_such_dependency"), ("broken", "raise ImportError('an old libc')")):
        (tmp_path / f"{name}_package.py").write_text(text)
        with pytest.raises(
            errors.PackageMissing, match=rf"^Drawing needs {name}_package, which cannot be .*\. Try: x$"
        ):
            require(f"{name}_package", "Drawing", "x")


@pytest.mark.parametrize("package", NEEDS)
def test_a_missing_package_is_named_with_its_pip_line(package: str) -> None:
    code, line = NEEDS[package]
    absent = f"import sys; sys.modules[{package!r}] = None\n"
    done = subprocess.run([sys.executable, "-c", absent + code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("multiparam.errors.PackageMissing: ") and last.endswith(f"not installed. Try: {line}"), last


def test_comparing_needs_numpy_only() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
        "import multiparam as mp; mp.compare; mp.record; import multiparam.comparison.reports.files"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
