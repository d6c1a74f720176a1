"""The judge's experiment, as a table: of each mistake and setting, how many verdicts are right. Minutes.

    PYTHONPATH=tests python tools/verdicts.py [FRAMEWORK ...]

Frameworks: torch, linen, keras, gluon; all where none is named. The exit status is 1 where a verdict is wrong.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import verdicts


def main(frameworks: list[str]) -> int:
    print(f"{'':8}{'dtype':10}{'island':8}{'case':28}{'right':>7}{'of':>5}")
    wrong = total = 0
    for (framework, dtype, island), count in verdicts.CANDIDATES.items():
        if frameworks and framework not in frameworks:
            continue
        found = list(verdicts.judged(framework, dtype, island, range(count)))
        right, of = (Counter(each.case for each in found if each.right or every) for every in (False, True))
        for case in verdicts.CASES:
            known = "yes" if island else ""
            print(f"{framework:8}{dtype:10}{known:8}{case.name:28}{right[case.name]:7}{of[case.name]:5}", flush=True)
        wrong += sum(not each.right for each in found)
        total += len(found)
    print(f"{total - wrong} of {total} verdicts are right.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
