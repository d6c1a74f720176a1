"""Let torchvision import beside torch for CPU, where its compiled operators do not load: two of them are declared.

    python tools/corpora/shim.py

timm and transformers import torchvision; none of the pairs calls these operators. (torchvision 0.28)
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

MARK = "# Declared by tools/corpora/shim.py\n"
OPERATORS = """import torch as _torch

_operators = _torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _operators.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> int:
    """Write the declarations at the top of torchvision's ``__init__.py``, once."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        print("torchvision is not installed.")
        return 1
    path = Path(spec.origin)
    text = path.read_text()
    if not text.startswith(MARK):
        path.write_text(MARK + OPERATORS + text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
