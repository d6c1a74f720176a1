"""Write into each recorded manifest how many of its parameters matching pairs without a guess, varied too.

    python tools/corpora/certain.py

The count only rises: one that fell is a test that fails.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from record_manifests import compact

TESTS = Path(__file__).resolve().parents[2] / "tests" / "transfers"


def main() -> int:
    """The command line."""
    sys.path.insert(0, str(TESTS))
    import test_manifests as tests

    for path in tests.FILES:
        pair = tests.recorded(path)
        counts = {"": (_count(tests, pair), pair.certain)}
        for variation, vary in tests.VARIATIONS.items():
            counts[variation] = _count(tests, vary(pair)), pair.varied.get(variation, 0)
        best = {variation: max(each) for variation, each in counts.items()}
        fell = [f"{variation or 'plain'} {now}, was {then}" for variation, (now, then) in counts.items() if now < then]
        print("; ".join([f"{path.stem}: {best['']} of {len(pair.pairs)}, at least {min(best.values())}", *fell]))
        document = json.loads(path.read_text())
        document |= {"certain": best.pop(""), "varied": best}
        path.write_text(compact(document))
    return 0


def _count(tests: ModuleType, pair: Any) -> int:
    """How many parameters are matched without a guess; 0 where there is no such variation, or one is wrong."""
    if pair is None:
        return 0
    plan = tests.plan_of(pair)
    if mistakes := tests.wrong(pair, plan):
        print(f"  {len(mistakes)} certain and wrong: {mistakes[0]}")
        return 0
    return int(tests.certain(pair, plan))


if __name__ == "__main__":
    raise SystemExit(main())
