"""A mapping as igd makes it, written out for nft: for tests that ask how others' rules treat such flows."""

from tests.firewall.three_hosts import EXTERNAL, PEER, PEER6

PORT = 8043

MAPPED = f"""
table inet mapped {{
    chain prerouting {{
        type nat hook prerouting priority dstnat + 1;
        ip daddr {EXTERNAL} meta l4proto {{ tcp, udp }} th dport {PORT} jump mapped
    }}
    chain mapped {{
        ct mark set ct mark | 0x10000000
        meta l4proto {{ tcp, udp }} dnat ip to {PEER}:{PORT}
    }}
    chain pinholes {{
        type filter hook prerouting priority mangle;
        ct state new ip6 daddr {PEER6} meta l4proto {{ tcp, udp }} th dport {PORT} ct mark set ct mark | 0x10000000
    }}
}}
"""
