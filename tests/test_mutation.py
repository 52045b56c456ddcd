"""Disturbed values and DSNs, with fixed seeds. PGPOLL_FUZZ_CASES=20000 is how many for each family."""

from __future__ import annotations

import os

import pytest

import mutation

CASES = int(os.environ.get("PGPOLL_FUZZ_CASES", "20000"))


@pytest.mark.parametrize("family", mutation.FAMILIES)
def test_f35_disturbed_values(family: str) -> None:
    ends = mutation.values(family, 1, CASES)
    assert ends["decoded"] > CASES // 50, ends
    assert ends["refused"] > CASES // 1000, ends  # any bytes are a bytea


def test_f59_disturbed_dsns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    ends = mutation.dsns("conninfo", 1, CASES)
    assert min(ends["read"], ends["refused"]) > CASES // 50, ends
