"""Write into each recorded manifest how many of its parameters today's matching pairs without a guess.

    python tools/corpora/certain.py

The count only rises: one that fell is a test that fails.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests" / "transfers"


def main() -> int:
    """The command line."""
    sys.path.insert(0, str(TESTS))
    import test_manifests as tests

    for path in tests.FILES:
        pair = tests.recorded(path)
        plan = tests.plan_of(pair)
        now = tests.certain(pair, plan)
        if mistakes := tests.wrong(pair, plan):
            print(f"{path.name}: {len(mistakes)} certain and wrong: {mistakes[0]}")
        elif now > pair.certain:
            print(f"{path.name}: {now} of {len(pair.pairs)}, before {pair.certain}")
            path.write_text(re.sub(r'"certain":\d+', f'"certain":{now}', path.read_text()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
