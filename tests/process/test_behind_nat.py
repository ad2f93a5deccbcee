"""What asks STUN servers keeps clear of the ports that others use."""

from dataclasses import replace
from typing import cast

from igd.config import Config
from igd.core.mapping import TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.site import Site
from igd.firewall.taken_ports import TakenPorts
from igd.host.stun_address import StunAddress
from igd.process.behind_nat import stun_address
from tests.gateway_harness import C1, GatewayHarness, map_port, policy

ASKING = Config.model_validate({"external_address": "stun", "stun_servers": ["stun.example.net"]})
RULE = "allow 5000-5004 0.0.0.0/0 1-65535"
MAPPED, OWN, OTHERS = 5001, 5002, 5003


class Others:
    """The ports of the operator's redirections and of other instances, as TakenPorts; `trouble` is raised if set."""

    trouble: FirewallError | None = None

    def hold(self, protocol: TransportProtocol, port: int) -> bool:
        """Return whether it is one of them."""
        if self.trouble:
            raise self.trouble
        return (protocol, port) == (TransportProtocol.UDP, OTHERS)


async def built(others: Others) -> StunAddress:
    harness = await GatewayHarness(policy(RULE)).start()
    harness.servers_own.add((TransportProtocol.UDP, OWN))
    await harness.ask(replace(map_port(MAPPED), protocol=TransportProtocol.UDP), C1)
    assert harness.ledger.table.holds((TransportProtocol.UDP, MAPPED))
    stun = stun_address(ASKING, harness.gateway, Site("ens0", "wg0", ()), cast("TakenPorts", others))
    assert stun is not None
    return stun


async def test_a_question_leaves_from_no_port_of_a_mapping() -> None:
    """Ours, another instance's, or one that the operator redirects."""
    others = Others()
    client = (await built(others))._client
    assert [port for port in range(4990, 5010) if client._is_mapped(port)] == [MAPPED, OTHERS]
    others.trouble = FirewallError("cannot be read")
    assert [port for port in range(4990, 5010) if client._is_mapped(port)] == [MAPPED]


async def test_the_tested_port_is_one_that_peers_may_map_now() -> None:
    others = Others()
    ports = (await built(others))._nat_test._ports
    assert sorted(ports()) == [5000, 5004]


async def test_other_sources_of_the_address_ask_nobody() -> None:
    harness = await GatewayHarness().start()
    for address in ("auto", "203.0.113.7"):
        config = Config.model_validate({"external_address": address})
        assert stun_address(config, harness.gateway, Site("ens0", "wg0", ()), cast("TakenPorts", Others())) is None
