"""Each warning is logged once for as long as its cause lasts."""

import logging

import pytest

from igd.firewall.recurring_warnings import RecurringWarnings


def test_a_warning_is_logged_when_it_appears_and_when_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    warnings = RecurringWarnings(logging.getLogger("test"), "beware: %s")
    for current, logged in (
        (["a"], ["beware: a"]),
        (["a", "b", "b"], ["beware: b"]),
        (["b"], []),
        (["b", "a"], ["beware: a"]),
    ):
        caplog.clear()
        warnings.log(current)
        assert [record.getMessage() for record in caplog.records] == logged
