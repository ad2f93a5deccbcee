"""Which addresses can be one host's, whatever the routes say."""

from ipaddress import IPv4Address, IPv6Address, ip_network

_NOT_ONE_HOSTS = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # "this network" (RFC 791)
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local (RFC 3927)
            "192.0.0.9/32",  # anycast: PCP (RFC 7723)
            "192.0.0.10/32",  # anycast: TURN (RFC 8155)
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved (RFC 1112 §4), and the limited broadcast address
            "::/96",  # unspecified, loopback, and IPv4-compatible (RFC 4291 §2.5.5.1)
            "::ffff:0:0/96",  # IPv4-mapped
            "2001:1::1/128",  # anycast: PCP
            "2001:1::2/128",  # anycast: TURN
            "fe80::/10",  # link-local
            "ff00::/8",  # multicast
        ),
    )
)


def is_unicast(address: IPv4Address | IPv6Address) -> bool:
    """Return whether a host in a tunnel can have this address, and only one.

    Which addresses of a network are broadcast or anycast, the kernel decides when it looks up the route.
    """
    return not any(address in network for network in _NOT_ONE_HOSTS)
