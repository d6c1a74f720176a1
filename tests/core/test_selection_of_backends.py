"""What ``mp.use`` selects where blocks are left out of order, entered twice, or by several threads."""

from __future__ import annotations

import threading

import pytest

import multiparam as mp
from multiparam.core import registry


@pytest.fixture(autouse=True)
def nothing_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_process", [])


def installed() -> list[str]:
    names = [name for name, status in mp.backends().items() if status]
    if len(names) < 2:
        pytest.skip("one backend is installed: there is nothing to choose")
    return names


def test_blocks_entered_in_any_order_leave_the_process_selection() -> None:
    one, other, *_ = installed()
    mp.use(one)
    first, second = mp.use(other), mp.use(other)
    for block in (first, second):
        with block:
            assert registry.selected() == other
    assert registry.selected() == one


def test_a_block_is_entered_again_inside_itself() -> None:
    one, other, *_ = installed()
    mp.use(one)
    with mp.use(other) as block:
        with block:
            assert registry.selected() == other
        assert registry.selected() == other
    assert registry.selected() == one


def test_a_block_holds_in_its_own_thread_only() -> None:
    one, other, *_ = installed()
    mp.use(one)
    seen: list[str] = []
    with mp.use(other):
        thread = threading.Thread(target=lambda: seen.append(registry.selected()))
        thread.start()
        thread.join()
    assert seen == [one]


def test_selecting_often_keeps_no_more_than_the_last() -> None:
    one, other, *_ = installed()
    for _ in range(10):
        mp.use(one)
        mp.use(other)
    assert registry.selected() == other and len(registry._process) <= 2
