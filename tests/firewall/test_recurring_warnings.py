"""Each warning is logged when its cause begins and when it ends."""

import logging

import pytest

from igd.firewall.recurring_warnings import RecurringWarnings


def test_a_warning_is_logged_when_it_begins_ends_and_returns(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    warnings = RecurringWarnings(logging.getLogger("test"), "beware: %s")
    for current, logged in (
        (["a"], ["WARNING beware: a"]),
        (["a", "b", "b"], ["WARNING beware: b"]),
        (["b"], ["INFO no longer: beware: a"]),
        (["b"], []),
        (["a", "c"], ["INFO no longer: beware: b", "WARNING beware: a", "WARNING beware: c"]),
        (["d; e: f"], ["INFO no longer: beware: a", "INFO no longer: beware: c", "WARNING beware: d; e: f"]),
        ([], ["INFO no longer: beware: d"]),
    ):
        caplog.clear()
        warnings.log(current)
        assert [f"{record.levelname} {record.getMessage()}" for record in caplog.records] == logged


def test_an_error_is_logged_until_a_block_ends_without_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    warnings = RecurringWarnings(logging.getLogger("test"), "cannot read: %s")
    for error, logged in (
        (OSError("a"), ["WARNING cannot read: a"]),
        (OSError("a"), []),
        (FileNotFoundError("b"), ["INFO no longer: cannot read: a", "WARNING cannot read: b"]),
        (None, ["INFO no longer: cannot read: b"]),
    ):
        caplog.clear()
        with warnings.catching(OSError):
            if error:
                raise error
        assert [f"{record.levelname} {record.getMessage()}" for record in caplog.records] == logged
    with pytest.raises(ValueError, match="x"), warnings.catching(OSError):
        raise ValueError("x")
