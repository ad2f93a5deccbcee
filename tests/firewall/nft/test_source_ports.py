"""The line before each endpoint, against a model that remembers everything."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, PortMapping, TransportProtocol
from igd.firewall.nft.source_ports import SourcePorts
from tests.firewall.three_hosts import PEER, PEER6

HERE, THERE = Endpoint(PEER, 3074), Endpoint(PEER, 3075)


def entry(
    port: int, internal: Endpoint = HERE, protocol: TransportProtocol = TransportProtocol.UDP, until: float = 9
) -> Entry:
    return Entry(PortMapping(protocol, port, internal, "peer"), Lease(until))


def after(*changes: Change) -> SourcePorts:
    made = SourcePorts()
    made.accept(made.select(changes))
    return made


OLD, NEW = entry(1), entry(2)


def test_the_oldest_goes_first() -> None:
    assert after().select([Change(None, OLD), Change(None, NEW)]).changes == [Change(None, OLD)]
    assert after(Change(None, OLD)).select([Change(None, NEW)]).changes == []


def test_when_it_goes_the_next_takes_over() -> None:
    both = after(Change(None, OLD), Change(None, NEW))
    assert both.select([Change(OLD, None)]).changes == [Change(OLD, NEW)]
    assert both.select([Change(NEW, None)]).changes == []
    assert both.select([Change(NEW, None), Change(OLD, None)]).changes == [Change(OLD, None)]


def test_a_renewal_keeps_its_place() -> None:
    longer = replace(OLD, lease=Lease(100))
    assert after(Change(None, OLD), Change(None, NEW)).select([Change(OLD, longer)]).changes == [Change(OLD, longer)]


def test_who_leads_elsewhere_queues_up_there() -> None:
    moved = entry(1, THERE)
    both = after(Change(None, OLD), Change(None, NEW), Change(None, entry(3, THERE)))
    assert both.select([Change(OLD, moved)]).changes == [Change(OLD, NEW)]


def test_udp_port_mappings_alone_have_a_place() -> None:
    tcp, pinhole = (
        entry(1, protocol=TransportProtocol.TCP),
        Entry(Pinhole(TransportProtocol.UDP, Endpoint(PEER6, 1), "peer"), Lease(9)),
    )
    assert after().select([Change(None, tcp), Change(None, pinhole)]).changes == []


def test_a_plan_is_nothing_until_it_is_accepted() -> None:
    made = after(Change(None, OLD))
    made.select([Change(OLD, None)])
    assert made.select([Change(OLD, None)]).changes == [Change(OLD, None)]


STEPS = st.lists(st.lists(st.tuples(st.integers(1, 4), st.none() | st.sampled_from([HERE, THERE])), max_size=4))


@given(STEPS)
def test_the_first_is_whoever_has_led_there_longest(steps: list[list[tuple[int, Endpoint | None]]]) -> None:
    ports, firsts = SourcePorts(), dict[Endpoint, Entry]()
    leading: dict[int, tuple[int, Entry]] = {}  # since when, and where to
    for clock, step in enumerate(steps):
        changes = []
        for number, (port, internal) in enumerate(step):
            since, before = leading.pop(port, (0, None))
            after_ = None if internal is None else entry(port, internal, until=clock * 10 + number)
            changes.append(Change(before, after_))
            if after_ is not None:
                stays = before is not None and before.mapping.internal == internal
                leading[port] = (since if stays else clock * 10 + number, after_)
        selection = ports.select(changes)
        for change in selection.changes:
            endpoint = (change.before or change.after).mapping.internal  # type: ignore[union-attr]
            assert firsts.pop(endpoint, None) == change.before
            if change.after is not None:
                firsts[endpoint] = change.after
        ports.accept(selection)
        queue = sorted(leading.values(), key=lambda one: one[0], reverse=True)
        assert firsts == {one.mapping.internal: one for _since, one in queue}
