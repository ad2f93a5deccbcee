"""The nftables backend against the real kernel, and against nft as operators use it."""

import contextlib
import errno
import re
import subprocess
import sys
import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd.core.mapping import AnyMapping, Change, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.netlink import BatchError
from igd.firewall.nft import elements
from igd.firewall.nft.nftables import Nftables
from igd.firewall.site import GRACE, MARK, label
from tests.firewall.calling import TRANSPORTS, Reached, Transport, caller, listener, reach
from tests.firewall.entries import entry
from tests.firewall.listings import (
    HAIRPIN,
    HEAD,
    LEADING,
    LISTING,
    NOT_LED,
    PRESERVED,
    SITE,
    TABLE,
    TAIL,
    held,
    listing,
    marks,
)
from tests.firewall.three_hosts import EXTERNAL, PEER, PEER6, REMOTE, ThreeHosts, new_namespace, run
from tests.lab import until

SECOND = IPv4Address("60.60.60.3")

RULE = "ip daddr @external ct mark set ct mark | 0x10000000 dnat ip to meta l4proto . th dport map @mappings"


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    """Return a remote, the server, where the test is, and a peer."""
    run("ip", "address", "add", f"{SECOND}/24", "dev", "ext0")
    return hosts


@pytest.mark.root
def test_nft_shows_the_table_as_it_is_documented(backend: Nftables) -> None:
    backend.replace_all([EXTERNAL, SECOND], [entry(8043, 80, "tcp")], now=0)
    assert listing() == LISTING


@pytest.mark.root
@pytest.mark.parametrize(
    ("hairpin", "preserve", "rules"),
    [
        (True, True, LEADING + HAIRPIN + PRESERVED),
        (False, True, NOT_LED + LEADING + PRESERVED),
        (False, False, NOT_LED + LEADING),
    ],
)
def test_options_are_rules_of_their_own(
    backend: Nftables,
    hairpin: bool,
    preserve: bool,
    rules: str,
) -> None:
    backend.replace_all([], [], now=0)  # with other options
    site = replace(SITE, hairpin=hairpin, preserve_source_port=preserve)
    with contextlib.closing(Nftables(site)) as changed:
        changed.replace_all([EXTERNAL, SECOND], [entry(8043, 80, "tcp")], now=0)
    assert listing() == HEAD + rules + TAIL


def nft(*arguments: str, text: bytes = b"") -> bytes:
    """Return what nft prints, which is not always UTF-8."""
    return subprocess.run(["nft", *arguments], input=text, capture_output=True, check=True).stdout


@pytest.mark.root
@pytest.mark.parametrize(
    "interface", ["wg0", "wg-home", "wg0.100", "0", "-", 'a@b+c!{}"#', "dnat", "wg\udce4", "wg*", "w*g", "wg\\", "wg$x"]
)
def test_a_saved_listing_loads_again(interface: str) -> None:
    site = replace(SITE, wireguard=interface, external=interface[::-1], hairpin=False, preserve_source_port=True)
    with new_namespace(), contextlib.closing(Nftables(site)) as backend:
        backend.replace_all([EXTERNAL], [entry(8043), entry(8043, 80, "tcp")], now=0)
        before = nft("-s", "list", "ruleset")
        backend.remove_all()
        assert listing() == ""
        nft("-f", "-", text=before)
        assert nft("-s", "list", "ruleset") == before


@pytest.mark.root
@pytest.mark.parametrize("bit", [MARK, 1, 0x8000_0000])
def test_a_saved_listing_with_everything_in_it_loads_again(bit: int) -> None:
    remotes = (
        Remote(IPv4Network("10.0.0.0/8"), 5),
        Remote(IPv4Network("10.1.2.3/32")),
        Remote(IPv4Network("0.0.0.0/0"), 6),
    )
    site = replace(SITE, mark=bit, preserve_source_port=True)
    port = PortMapping(TransportProtocol.UDP, 9, Endpoint(PEER, 10), "peer", "a game")
    hole = Pinhole(TransportProtocol.TCP, Endpoint(PEER6, 9), "peer", "a page")
    some = replace(
        hole,
        internal=Endpoint(PEER6, 10),
        remotes=(Remote(IPv6Network("2001:db8::/33"), 5), Remote(IPv6Network("::/0"), 6)),
    )
    mappings: list[AnyMapping] = [port, replace(port, external_port=10, remotes=remotes), hole, some]
    with new_namespace(), contextlib.closing(Nftables(site)) as backend:
        backend.replace_all([EXTERNAL, SECOND], [Entry(mapping, Lease(100)) for mapping in mappings], now=0)
        before = listing()
        assert before.count('comment "peer a') == 1 + (1 + 3) + 1 + (1 + 8 + 1) + 1
        run("nft", "flush", "ruleset")
        run("nft", "-f", "-", text=before)
        assert listing() == before


@given(st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=15))
def test_labels_are_names_for_nft_and_tell_interfaces_apart(interface: str) -> None:
    assert re.fullmatch(r"igd_[A-Za-z0-9_./-]*", label(interface))
    raw = re.sub(rb"/(..)", lambda found: bytes.fromhex(found[1].decode()), label(interface).encode())
    assert raw == b"igd_" + interface.encode()


@pytest.mark.root
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "saved and loaded"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_peer_is_reached_and_sees_the_true_source(
    hosts: ThreeHosts,
    gateway: Nftables,
    transport: Transport,
    loaded: bool,
) -> None:
    gateway.replace_all([EXTERNAL], [entry(8043, 80, transport)], now=0)
    if loaded:
        saved = run("nft", "list", "ruleset")
        gateway.remove_all()
        run("nft", "-f", "-", text=saved)
    with listener(hosts.peer, transport, 80) as peer:
        assert reach(hosts, transport, {"peer": peer}, 8043) == Reached("peer", REMOTE)


@pytest.mark.root
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_packets_to_other_addresses_and_ports_are_let_alone(
    hosts: ThreeHosts, gateway: Nftables, transport: Transport
) -> None:
    """The server's sockets get them, though each would lose to a mapping that took it for its own."""
    gateway.replace_all([EXTERNAL], [entry(8043, protocol=transport)], now=0)
    run("nft", "flush", "chain", *TABLE, "prerouting")  # without its rule for sockets, address and port alone decide
    run("nft", "add", "rule", *TABLE, "prerouting", *RULE.split())
    with contextlib.ExitStack() as stack:
        listeners = {
            "peer": stack.enter_context(listener(hosts.peer, transport, 8043)),
            "public": stack.enter_context(listener(hosts.server, transport, 8043, str(EXTERNAL))),
            "second": stack.enter_context(listener(hosts.server, transport, 8043, str(SECOND))),
            "other port": stack.enter_context(listener(hosts.server, transport, 8044, str(EXTERNAL))),
        }
        assert reach(hosts, transport, listeners, 8043).name == "peer"
        assert reach(hosts, transport, listeners, 8043, SECOND).name == "second"
        assert reach(hosts, transport, listeners, 8044).name == "other port"


@pytest.mark.root
@pytest.mark.parametrize("earlier", ["socket", "mapping"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_socket_of_the_server_itself_wins(
    hosts: ThreeHosts, gateway: Nftables, transport: Transport, earlier: str
) -> None:
    entries = [entry(8043, protocol=transport)]
    if earlier == "mapping":
        gateway.replace_all([EXTERNAL], entries, now=0)
    with listener(hosts.peer, transport, 8043) as peer, listener(hosts.server, transport, 8043) as own:
        if earlier == "socket":
            gateway.replace_all([EXTERNAL], entries, now=0)
        assert reach(hosts, transport, {"peer": peer, "server": own}, 8043).name == "server"


@pytest.mark.root
@pytest.mark.parametrize("address", ["127.0.0.1", "10.100.0.1"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_socket_of_the_server_at_another_address_is_no_hindrance(
    hosts: ThreeHosts, gateway: Nftables, transport: Transport, address: str
) -> None:
    gateway.replace_all([EXTERNAL], [entry(8043, protocol=transport)], now=0)
    with listener(hosts.peer, transport, 8043) as peer, listener(hosts.server, transport, 8043, address) as own:
        assert reach(hosts, transport, {"peer": peer, "server": own}, 8043).name == "peer"


@pytest.mark.root
@pytest.mark.parametrize(
    "command",
    [
        "iptables-nft -t nat -A PREROUTING -p {} -d 60.60.60.1 --dport 8043 -j DNAT --to-destination 10.100.0.2:99",
        "nft 'table ip t {{ chain c {{ type nat hook prerouting priority -100; {} dport 8043 dnat 10.100.0.2:99;}};}}'",
    ],
    ids=["iptables-nft", "nft"],
)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_redirection_of_the_operators_wins(
    hosts: ThreeHosts, gateway: Nftables, transport: Transport, command: str
) -> None:
    gateway.replace_all([EXTERNAL], [entry(8043, protocol=transport)], now=0)
    run("sh", "-c", command.format(transport))
    with listener(hosts.peer, transport, 8043) as ours, listener(hosts.peer, transport, 99) as operators:
        assert reach(hosts, transport, {"ours": ours, "operator's": operators}, 8043).name == "operator's"
    assert marks() == {8043: 0}


@pytest.mark.root
def test_our_flows_alone_carry_the_mark_and_other_bits_stay(hosts: ThreeHosts) -> None:
    run("iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", "0x5/0x5")
    with contextlib.closing(Nftables(replace(SITE, mark=0x40))) as gateway:
        gateway.replace_all([EXTERNAL], [entry(8043)], now=0)
        with listener(hosts.peer, "udp", 8043) as peer, listener(hosts.server, "udp", 8044) as own:
            for port in (8043, 8044, 8045):  # the last one is nobody's
                with caller(hosts.remote, "udp", port) as calling:
                    calling.send(b"hello")
            assert [peer.recv(9), own.recv(9)] == [b"hello"] * 2
    until(lambda: marks() == {8043: 0x45, 8044: 0x5, 8045: 0x5})


@pytest.mark.root
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_is_lost_while_everything_is_replaced(
    hosts: ThreeHosts, gateway: Nftables, transport: Transport
) -> None:
    """Neither from a flow that lasts, nor the first packet of a new one."""
    entries = [entry(8043, protocol=transport)]
    gateway.replace_all([EXTERNAL], entries, now=0)
    done = threading.Event()
    replaced = []

    def replacing() -> None:
        while not done.is_set():
            gateway.replace_all([EXTERNAL], entries, now=0)
            replaced.append(True)

    thread = threading.Thread(target=replacing)
    with listener(hosts.peer, transport, 8043) as peer, caller(hosts.remote, transport, 8043) as lasting:
        lasting.send(b"begin")
        end = peer.accept()[0] if transport == "tcp" else peer
        assert end.recv(64) == b"begin"
        thread.start()
        try:
            number = 0
            while number < 300 or len(replaced) <= 10:
                number += 1
                lasting.send(b"%d" % number)
                assert end.recv(64) == b"%d" % number
                assert reach(hosts, transport, {"peer": peer}, 8043).name == "peer"
        finally:
            done.set()
            thread.join()
        end.close()


BASE_CHAIN = (
    "flush chain inet igd_wg0 prerouting; delete chain inet igd_wg0 from_remotes; "
    "add chain inet igd_wg0 from_remotes { type nat hook prerouting priority 1; }"
)


@pytest.mark.root
@pytest.mark.parametrize(
    "damage",
    [
        "",
        "delete table inet igd_wg0",
        "flush chain inet igd_wg0 prerouting",
        "flush chain inet igd_wg0 prerouting; delete map inet igd_wg0 mappings",
        "flush map inet igd_wg0 mappings; add element inet igd_wg0 mappings { udp . 9 : 1.2.3.4 . 9 }",
        "add element inet igd_wg0 external { 60.60.60.3 }",
        "add table inet igd_wg0 { flags dormant; }",
        "insert rule inet igd_wg0 prerouting drop; add chain inet igd_wg0 more; add set inet igd_wg0 s { type mark; }",
        "flush chain inet igd_wg0 prerouting; delete set inet igd_wg0 external",
        "delete table inet igd_wg0; add table inet igd_wg0; add set inet igd_wg0 external { type mark; }",
        "delete table inet igd_wg0; table inet igd_wg0 { set external { type ipv4_addr; flags interval; }; }",
        "delete chain inet igd_wg0 prerouting; add chain inet igd_wg0 prerouting { type nat hook input priority 7; }",
        "flush chain inet igd_wg0 prerouting; add chain inet igd_wg0 prerouting { policy drop; }",
        "add table inet igd_wg0 { flags dormant; }; delete chain inet igd_wg0 prerouting",
        "delete chain inet igd_wg0 postrouting",
        "delete map inet igd_wg0 outbound",
        "add element inet igd_wg0 pinholes { 2001:db8::1 . tcp . 7 }",
        "add element inet igd_wg0 restricted_ports { tcp . 7 }",
        "flush chain inet igd_wg0 prerouting; delete set inet igd_wg0 pinholes",
        "flush chain inet igd_wg0 prerouting; delete set inet igd_wg0 restricted_ports",
        "table inet igd_wg0 { map remotes_24 { type mark : mark; }; }",
        "flush chain inet igd_wg0 prerouting; delete chain inet igd_wg0 from_remotes",
        "add rule inet igd_wg0 from_remotes drop",
        BASE_CHAIN,
        "delete map inet igd_wg0 outbound; add set inet igd_wg0 outbound { type ipv4_addr . inet_service; }",
    ],
)
def test_replace_all_makes_it_right_whatever_there_was(backend: Nftables, damage: str) -> None:
    backend.replace_all([EXTERNAL], [entry(7), entry(8)], now=0)
    run("nft", "-f", "-", text=damage.replace(";", ";" if "{" in damage else "\n"))
    backend.replace_all([EXTERNAL, SECOND], [entry(8043, 80, "tcp")], now=0)
    assert listing() == LISTING


@pytest.mark.root
def test_replace_all_makes_it_right_after_a_listing_was_loaded_on_top(backend: Nftables) -> None:
    backend.replace_all([EXTERNAL, SECOND], [entry(8043, 80, "tcp")], now=0)
    run("nft", "-f", "-", text=listing())
    assert listing() != LISTING
    backend.replace_all([EXTERNAL, SECOND], [entry(8043, 80, "tcp")], now=0)
    assert listing() == LISTING


@pytest.mark.root
def test_remove_all_takes_ours_and_nothing_else(backend: Nftables) -> None:
    run("nft", "add table inet igd_wg1; add table ip igd_wg0")
    before = listing()
    backend.replace_all([EXTERNAL], [entry(8043)], now=0)
    for _time in range(2):
        backend.remove_all()
        assert listing() == before


@pytest.mark.root
def test_the_kernels_timeout_is_the_lease_and_the_grace(backend: Nftables) -> None:
    backend.replace_all([], [entry(1, until=1000.5), entry(2, until=900)], now=910)
    assert [timeout for _address, _port, timeout in held().values()] == [90 + GRACE, GRACE]


@pytest.mark.root
def test_a_renewal_sets_the_new_timeout(backend: Nftables) -> None:
    old = entry(8043, until=60)
    new = replace(old, lease=Lease(3650))
    backend.replace_all([], [old, entry(9)], now=0)
    backend.apply([Change(old, new)], now=50)
    assert held()["udp", 8043] == (str(PEER), 8043, 3600 + GRACE)


@pytest.fixture
def short_lived(backend: Nftables, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Return an entry that the kernel's timeout has just taken out of the map; two others are still there."""
    gone = entry(8043)
    with monkeypatch.context() as patch:
        patch.setattr(elements, "kernel_timeout", lambda *_: 20)
        backend.replace_all([], [gone], now=0)
    backend.apply([Change(None, entry(1)), Change(None, entry(2))], now=0)
    while ("udp", 8043) in held():
        pass
    return gone


@pytest.mark.root
def test_what_the_kernel_ended_by_itself_can_be_deleted(backend: Nftables, short_lived: Entry) -> None:
    backend.apply([Change(entry(1), None), Change(short_lived, None), Change(None, entry(3))], now=0)
    assert held().keys() == {("udp", 2), ("udp", 3)}


@pytest.mark.root
def test_what_the_kernel_ended_by_itself_can_be_renewed(backend: Nftables, short_lived: Entry) -> None:
    backend.apply([Change(short_lived, entry(8043, 80)), Change(entry(2), entry(2, 22))], now=0)
    assert {key: value[1] for key, value in held().items()} == {("udp", 1): 1, ("udp", 2): 22, ("udp", 8043): 80}


@pytest.mark.root
def test_changes_that_cannot_be_done_change_nothing(backend: Nftables) -> None:
    backend.replace_all([], [entry(1), entry(2)], now=0)
    before = held()
    with pytest.raises(BatchError) as caught:  # port 2 is led elsewhere already
        backend.apply([Change(entry(1), None), Change(entry(9), None), Change(None, entry(2, 22))], now=0)
    assert {error.errno for error in caught.value.errors} == {errno.ENOENT, errno.EEXIST}
    assert held() == before


@pytest.mark.root
def test_without_our_table_an_addition_is_an_error(backend: Nftables) -> None:
    with pytest.raises(FirewallError, match="ENOENT"):
        backend.apply([Change(None, entry(1))], now=0)
    assert listing() == ""


@pytest.mark.root
def test_sixty_thousand_entries(backend: Nftables) -> None:
    """They are counted by taking them out: a listing of so many is wrong while the kernel resizes its hash table."""
    entries = [entry(port, protocol=protocol) for port in range(1, 30001) for protocol in TRANSPORTS]
    for _time in range(2):  # into nothing, and in place of others
        backend.replace_all([EXTERNAL], entries, now=0)
    backend.apply([Change(one, None) for one in entries], now=0)
    assert held() == {}


@pytest.mark.root
def test_without_the_capability_every_call_is_an_error_and_changes_nothing(backend: Nftables) -> None:
    program = """
from igd.firewall.backend import FirewallError
from igd.firewall.nft.nftables import Nftables
from igd.firewall.site import Site
backend = Nftables(Site("ext0", "wg0", ()))
for call in (lambda: backend.replace_all([], [], 0), backend.remove_all):
    try:
        call()
    except FirewallError as error:
        print(error)
"""
    backend.replace_all([EXTERNAL, SECOND], [entry(8043, 80, "tcp")], now=0)
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    done = subprocess.run([*without, sys.executable, "-c", program], text=True, stdout=subprocess.PIPE, check=True)
    refusal = "netfilter: EPERM: Operation not permitted: CAP_NET_ADMIN is needed"
    assert done.stdout.splitlines() == [refusal, refusal]
    assert listing() == LISTING


PortKey = tuple[TransportProtocol, int]
KEYS = st.tuples(st.sampled_from(TransportProtocol), st.integers(1, 4))
INTERNAL = st.builds(Endpoint, st.sampled_from([PEER, IPv4Address("10.100.0.3")]), st.sampled_from([1, 65535]))
STEPS = st.lists(st.lists(st.tuples(KEYS, st.none() | INTERNAL), max_size=4), max_size=5)


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, start=st.dictionaries(KEYS, INTERNAL))
def test_whatever_changes_come_the_map_is_what_they_say(
    backend: Nftables, start: dict[PortKey, Endpoint], steps: list[list[tuple[PortKey, Endpoint | None]]]
) -> None:
    """A step is one call; each change in it names a port and where it leads from then on, if anywhere."""

    def entry_of(key: PortKey, internal: Endpoint | None) -> Entry | None:
        return None if internal is None else Entry(PortMapping(*key, internal, "peer"), Lease(100))

    model = dict(start)
    backend.replace_all([], filter(None, map(entry_of, start.keys(), start.values())), now=0)
    for step in steps:
        changes = []
        for key, internal in step:
            changes.append(Change(entry_of(key, model.pop(key, None)), entry_of(key, internal)))
            if internal is not None:
                model[key] = internal
        backend.apply(changes, now=0)
    expected = {(key.name.lower(), port): (str(to.address), to.port, 100 + GRACE) for (key, port), to in model.items()}
    assert held() == expected


@pytest.mark.root
def test_the_mark_is_the_documented_one(backend: Nftables) -> None:
    backend.replace_all([], [], now=0)
    assert f"ct mark | {MARK:#x}" in listing()
