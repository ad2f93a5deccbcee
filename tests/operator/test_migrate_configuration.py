"""What `igd migrate` makes of each line of miniupnpd.conf."""

from pathlib import Path
from uuid import UUID

import pytest

from igd.config import Config, parse
from igd.config_miniupnpd import SETTINGS, Outcome
from igd.operator.migrate.conversion import Conversion, Row, convert
from igd.operator.migrate.rules import ALLOW_THE_REST, PINHOLES
from igd.operator.migrate.values import Situation

NAMES = """
    allow anchor bitrate_down bitrate_up clean_ruleset_interval clean_ruleset_threshold deny enable_natpmp
    enable_pcp_pmp enable_upnp ext_allow_private_ipv4 ext_ifname ext_ifname6 ext_ip ext_perform_stun ext_stun_host
    ext_stun_port force_igd_desc_v1 friendly_name http_port https_port ipv6_disable ipv6_listening_ip lease_file
    lease_file6 listening_ip manufacturer_name manufacturer_url max_lifetime min_lifetime minissdpdsocket
    model_description model_name model_number model_url notify_interval packet_log pcp_allow_thirdparty port
    presentation_url queue quickrules secure_mode serial set_learn_dscp system_uptime tag upnp_forward_chain
    upnp_nat_chain upnp_nat_postrouting_chain upnp_nat_table_name upnp_nftables_family_split upnp_table_name uuid
""".split()
"""Those of the table in options.c of miniupnpd 2.3.0 to 2.3.11, and of the lines that it reads otherwise."""

SITUATION = Situation("wg0", {"wg0": "wg0", "10.100.0.1/24": "wg0", "eth1": "eth1"})


def converted(text: str, situation: Situation = SITUATION) -> tuple[Conversion, Config]:
    """Return what becomes of the text, and the configuration that is written."""
    conversion = convert(text, situation)
    return conversion, parse(conversion.toml("miniupnpd.conf", {}), Path("wg0.toml"))


def row(line: str, *others: str) -> Row:
    """Return what becomes of a line, which stands above others."""
    conversion, _ = converted("\n".join([line, *others]))
    return conversion.rows[0]


def test_every_setting_of_miniupnpd_has_a_row() -> None:
    assert {*SETTINGS, "allow", "deny"} == set(NAMES)


@pytest.mark.parametrize("value", ["", "0", "yes", "no", "x y", "-1", '"quoted"', "99999999999"])
def test_whatever_the_value_the_result_is_a_configuration(value: str) -> None:
    lines = [f"{name}={value}" for name in sorted(set(NAMES) - {"allow", "deny"})]
    for text in (*lines, "\n".join([*lines, "ext_perform_stun=yes"])):
        conversion, _ = converted(text)
        assert not any("no such setting" in each.text for each in conversion.rows)


@pytest.mark.parametrize(
    ("line", "outcome", "text"),
    [
        ("ext_ifname=ens0", Outcome.CONVERTED, 'external_interface = "ens0"'),
        ("  ext_ifname =  ens0  ", Outcome.CONVERTED, 'external_interface = "ens0"'),
        ("ext_ifname=wg0", Outcome.LOST, "this is the WireGuard interface itself; igd takes the way to the internet"),
        ("ext_ip=203.0.113.7", Outcome.CONVERTED, 'external_address = "203.0.113.7"'),
        ("ext_ip=", Outcome.DEFAULT, 'external_address = "auto"'),
        ("listening_ip=wg0", Outcome.NEEDLESS, "igd@wg0 listens on all addresses of wg0"),
        ("listening_ip=10.100.0.1/24", Outcome.NEEDLESS, "igd@wg0 listens on all addresses of wg0"),
        ("listening_ip=wg0 br0", Outcome.NEEDLESS, "igd@wg0 listens on all addresses of wg0; br0 is ignored"),
        ("listening_ip=eth1", Outcome.LOST, "igd@wg0 serves the peers of its own interface only"),
        ("http_port=5000", Outcome.CONVERTED, "http_port = 5000"),
        ("port=5000 # for the firewall", Outcome.CONVERTED, "http_port = 5000"),
        ("port=0", Outcome.DEFAULT, "http_port = 2869"),
        ("https_port=0", Outcome.NEEDLESS, "igd has no HTTPS: what passes through the tunnel is encrypted"),
        ("https_port=443", Outcome.LOST, "igd has no HTTPS: what passes through the tunnel is encrypted"),
        ("uuid=", Outcome.DEFAULT, "no uuid"),
        ("uuid=0000-1", Outcome.LOST, "it is not a UUID; igd's is derived from the interface's public key"),
        ("enable_natpmp=yes", Outcome.DEFAULT, "enabled = true in [port_control]"),
        ("enable_pcp_pmp=1", Outcome.DEFAULT, "enabled = true in [port_control]"),
        ("enable_natpmp=no", Outcome.CONVERTED, "enabled = false in [port_control]"),
        ("pcp_allow_thirdparty=yes", Outcome.CONVERTED, "third_party = true in [port_control]"),
        ("min_lifetime=120", Outcome.CONVERTED, "min = 120 in [leases]: for UPnP as well"),
        ("min_lifetime=9999", Outcome.CONVERTED, "min = 120 in [leases]: for UPnP as well"),
        ("enable_upnp=yes", Outcome.DEFAULT, "UPnP is on"),
        ("enable_upnp=no", Outcome.LOST, SETTINGS["enable_upnp"].text),
        ("notify_interval=60", Outcome.LOST, SETTINGS["notify_interval"].text),
        ("system_uptime=yes", Outcome.LOST, SETTINGS["system_uptime"].text),
        ("clean_ruleset_interval=0", Outcome.NEEDLESS, SETTINGS["clean_ruleset_interval"].text),
        ("serial=1", Outcome.NEEDLESS, SETTINGS["serial"].text),
        ("friendly_name=", Outcome.DEFAULT, "no friendly_name"),
        ("ext_perform_stun=yes", Outcome.LOST, "there is no ext_stun_host, and miniupnpd does not start"),
        ("ext_stun_host=stun.example.net", Outcome.NEEDLESS, "ext_perform_stun is off"),
        ("uuidx=1", Outcome.LOST, "miniupnpd 2.3 has no such setting, and does not start with this line"),
        ("what is this", Outcome.LOST, "miniupnpd 2.3 has no such setting, and does not start with this line"),
    ],
)
def test_what_becomes_of_a_line(line: str, outcome: Outcome, text: str) -> None:
    assert row(line)[1:] == (outcome, text)


def test_of_two_lines_of_a_setting_the_last_one_counts_under_either_name() -> None:
    conversion, config = converted("port=5000\nhttp_port=5001\nenable_natpmp=no\nenable_pcp_pmp=yes\n")
    assert [each.text for each in conversion.rows[:4:2]] == ["line 2 counts", "line 4 counts"]
    assert (config.http_port, config.port_control.enabled) == (5001, True)


def test_stun_takes_host_and_port_from_two_lines() -> None:
    _, config = converted(
        "ext_ip=1.2.3.4\next_stun_port=1234\next_perform_stun=allow-filtered\next_stun_host=s.example\n"
    )
    assert (config.external_address, str((config.stun_servers or [""])[0])) == ("stun", "s.example:1234")


def test_the_longest_lifetime_is_also_that_of_a_request_without_an_end() -> None:
    _, config = converted("max_lifetime=3600\nmin_lifetime=60\n")
    assert (config.leases.min, config.leases.default, config.leases.max) == (60, 3600, 3600)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http_port=0\nuuid=\nupnp_forward_chain=miniupnpd\n",
        "http_port=5000\nuuid=00000000-0000-4000-8000-000000000002\n",  # its options -p and -u count more than the file
        "http_port=41055\nuuid=00000000-0000-4000-8000-000000000001\n",
    ],
)
def test_port_and_uuid_are_those_of_the_daemon_that_runs(text: str) -> None:
    uuid = UUID("00000000-0000-4000-8000-000000000001")
    situation = Situation("wg0", {}, 41055, uuid, "inet filter miniupnpd")
    _, config = converted(text, situation)
    found = config.http_port, config.uuid, config.firewall.forward_chain
    assert found == (41055, uuid, "inet filter miniupnpd")


# Rules


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("allow 1024-65535 10.100.0.0/24 1024-65535", "allow 1024-65535 10.100.0.0/24 1024-65535"),
        ("deny 22 10.100.0.7/24 22", "deny 22 10.100.0.0/24 22"),
        ("allow  080 10.100.0.0/255.255.255.0\t0-65535", "allow 80 10.100.0.0/24 0-65535"),
        ("allow 80 10.100.0.2 80 and so on", "allow 80 10.100.0.2/32 80"),
        ('deny 1-2 0.0.0.0/0 1-2 "My [[:digit:]]+ app"', 'deny 1-2 0.0.0.0/0 1-2 "My [0-9]+ app"'),
    ],
)
def test_a_rule_means_the_same(line: str, rule: str) -> None:
    conversion, config = converted(line)
    assert conversion.rows[0].outcome is Outcome.CONVERTED
    assert str(config.policy.rules[0]) == rule


@pytest.mark.parametrize(
    "line", ["allow 5-1 10.0.0.0/8 1", "allow 0 10.0.0.0/8 1", "deny 1-2 10.0.0.0/99 1", "allow x"]
)
def test_a_rule_that_is_none_is_named(line: str) -> None:
    assert row(line).outcome is Outcome.LOST


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", [ALLOW_THE_REST, PINHOLES]),
        ("allow 1024-65535 10.100.0.0/24 1024-65535", [ALLOW_THE_REST, PINHOLES]),
        ("deny 0-65535 0.0.0.0/0 0-65535", [PINHOLES]),
        ("deny 0-65535 0.0.0.0/0 1024-65535", [ALLOW_THE_REST, PINHOLES]),
        ("deny 0-65535 0.0.0.0/0 0-65535\nipv6_disable=yes", []),
    ],
)
def test_what_no_line_decides_is_allowed_as_before(text: str, rest: list[str]) -> None:
    _, config = converted(text)
    own = sum(line.startswith(("allow", "deny")) for line in text.splitlines())
    assert [str(rule) for rule in config.policy.rules[own:]] == rest


def test_peers_of_the_former_file_keep_their_sections() -> None:
    key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
    before = parse(f'[peers."my laptop"]\npublic_key = "{key}"\nreserve = ["tcp 25565"]\n', Path("wg0.toml"))
    conversion, _ = converted("ext_ifname=ens0")
    assert parse(conversion.toml("miniupnpd.conf", before.peers), Path("wg0.toml")).peers == before.peers
