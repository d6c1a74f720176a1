"""Complex Parameters are filled with complex numbers."""

from __future__ import annotations

import pytest

import multiparam as mp

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.needs("torch"), pytest.mark.xdist_group("torch")]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_the_variance_is_that_of_torchs_own(dtype: str) -> None:
    net = mp.wrap(torch.nn.Linear(300, 200, dtype=getattr(torch, dtype)))
    net["weight"].init(mp.init.normal(std=0.1), seed=0)
    own = torch.nn.init.normal_(torch.empty(200, 300, dtype=getattr(torch, dtype)), std=0.1)
    found = net["weight"].native.detach()
    assert found.dtype is own.dtype
    for part in (torch.real, torch.imag):
        assert part(found).std().item() == pytest.approx(part(own).std().item(), rel=0.03)
