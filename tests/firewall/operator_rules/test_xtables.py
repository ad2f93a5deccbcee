"""Which tables of iptables-legacy there are, for a process that may not or cannot look."""

import resource
from collections.abc import Iterator

import pytest

from igd.firewall.backend import FirewallError
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.operator_rules import xtables

pytestmark = pytest.mark.root


@pytest.fixture
def no_descriptors(alone: None) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("no_descriptors")
def test_without_file_descriptors_the_tables_are_not_known() -> None:
    """The loop that polls them retries after a FirewallError; any other exception would end the daemon."""
    with pytest.raises(FirewallError, match="Too many open files"):
        xtables.legacy_tables()


def test_the_watch_of_the_tables_survives_that(alone: None, request: pytest.FixtureRequest) -> None:
    watch = LegacyWatch([(4, "nat")])
    request.getfixturevalue("no_descriptors")
    with pytest.raises(FirewallError, match="Too many open files"):
        watch.changed()
