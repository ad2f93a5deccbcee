"""The numbers of nf_tables that igd uses, from linux/netfilter/nf_tables.h.

With an underscore for the dot a name is the header's: NFTA_TABLE.NAME is NFTA_TABLE_NAME. Registers and verdicts are
the exception, and say so. Where igd uses one member of an enum, it is a constant.
"""

from enum import IntEnum, IntFlag


class NFT_MSG(IntEnum):
    """Message types: enum nf_tables_msg_types."""

    NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
    NEWCHAIN, GETCHAIN = 3, 4
    NEWRULE, GETRULE, DELRULE = 6, 7, 8
    NEWSET, GETSET, DELSET = 9, 10, 11
    NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
    NEWGEN = 15
    TRACE = 17
    NEWOBJ = 18


NFTA_LIST_ELEM = 1  # of every list: enum nft_list_attributes


# Tables


class NFTA_TABLE(IntEnum):
    """Attributes of a table: enum nft_table_attributes."""

    NAME, FLAGS, OWNER = 1, 2, 7  # OWNER: the port of the owner's netlink socket


class NFT_TABLE_F(IntFlag):
    """Flags of a table: enum nft_table_flags."""

    OWNER = 0x2  # Linux 5.12
    PERSIST = 0x4  # Linux 6.9


# Chains


class NFTA_CHAIN(IntEnum):
    """Attributes of a chain: enum nft_chain_attributes."""

    TABLE, NAME, HOOK, POLICY, TYPE = 1, 3, 4, 5, 7


class NFTA_HOOK(IntEnum):
    """Attributes of a base chain's hook: enum nft_hook_attributes."""

    HOOKNUM, PRIORITY, DEV = 1, 2, 3


class NF_INET(IntEnum):
    """Hooks: enum nf_inet_hooks in linux/netfilter.h."""

    PRE_ROUTING, LOCAL_IN, FORWARD, LOCAL_OUT, POST_ROUTING = 0, 1, 2, 3, 4


NF_NETDEV_EGRESS = 1  # of a device: enum nf_dev_hooks in linux/netfilter.h; Linux 5.16


class NF_IP_PRI(IntEnum):
    """Priorities: enum nf_ip_hook_priorities in linux/netfilter_ipv4.h."""

    FIRST, CONNTRACK_DEFRAG, NAT_DST, FILTER, NAT_SRC, LAST = -0x8000_0000, -400, -100, 0, 100, 0x7FFF_FFFF


# Rules


class NFTA_RULE(IntEnum):
    """Attributes of a rule: enum nft_rule_attributes."""

    TABLE, CHAIN, EXPRESSIONS, USERDATA = 1, 2, 4, 7


# Sets and maps


class NFTA_SET(IntEnum):
    """Attributes of a set: enum nft_set_attributes."""

    TABLE, NAME, FLAGS = 1, 2, 3
    KEY_TYPE, KEY_LEN, DATA_TYPE, DATA_LEN = 4, 5, 6, 7
    ID, EXPR = 10, 17


class NFT_SET(IntFlag):
    """Flags of a set: enum nft_set_flags."""

    INTERVAL, MAP, TIMEOUT, OBJECT = 0x04, 0x08, 0x10, 0x40


class NFTA_SET_ELEM_LIST(IntEnum):
    """Attributes of a message about elements: enum nft_set_elem_list_attributes."""

    TABLE, SET, ELEMENTS = 1, 2, 3


class NFTA_SET_ELEM(IntEnum):
    """Attributes of an element: enum nft_set_elem_attributes."""

    KEY, DATA, TIMEOUT, USERDATA, EXPR = 1, 2, 4, 6, 7


# Expressions


class NFTA_COUNTER(IntEnum):
    """Attributes of counter: enum nft_counter_attributes."""

    BYTES, PACKETS = 1, 2


class NFTA_EXPR(IntEnum):
    """Attributes of every expression: enum nft_expr_attributes."""

    NAME, DATA = 1, 2


class NFTA_DATA(IntEnum):
    """Attributes of a value: enum nft_data_attributes."""

    VALUE, VERDICT = 1, 2


class NFTA_VERDICT(IntEnum):
    """Attributes of a verdict: enum nft_verdict_attributes."""

    CODE, CHAIN = 1, 2


class NFT_VERDICTS(IntEnum):
    """Verdicts: NF_DROP and NF_ACCEPT in linux/netfilter.h, and enum nft_verdicts."""

    NF_DROP, NF_ACCEPT, NF_STOLEN, NF_QUEUE = 0, 1, 2, 3
    NFT_JUMP = -3
    NFT_RETURN = -5


class NFT_REGISTERS(IntEnum):
    """Registers: enum nft_registers. REG32_00 to REG32_15 hold 4 bytes each."""

    REG_VERDICT = 0
    REG32_00, REG32_01 = 8, 9


class NFTA_IMMEDIATE(IntEnum):
    """Attributes of immediate: enum nft_immediate_attributes."""

    DREG, DATA = 1, 2


class NFTA_BITWISE(IntEnum):
    """Attributes of bitwise: enum nft_bitwise_attributes."""

    SREG, DREG, LEN, MASK, XOR = 1, 2, 3, 4, 5


class NFTA_CMP(IntEnum):
    """Attributes of cmp: enum nft_cmp_attributes."""

    SREG, OP, DATA = 1, 2, 3


class NFT_CMP(IntEnum):
    """Comparisons: enum nft_cmp_ops."""

    EQ, NEQ, LTE = 0, 1, 3


class NFTA_LOOKUP(IntEnum):
    """Attributes of lookup: enum nft_lookup_attributes."""

    SET, SREG, DREG, FLAGS = 1, 2, 3, 5


NFT_LOOKUP_F_INV = 1  # lookup matches what is not in the set: enum nft_lookup_flags


class NFTA_PAYLOAD(IntEnum):
    """Attributes of payload: enum nft_payload_attributes."""

    DREG, BASE, OFFSET, LEN = 1, 2, 3, 4


class NFT_PAYLOAD(IntEnum):
    """What an offset counts from: enum nft_payload_bases."""

    NETWORK_HEADER, TRANSPORT_HEADER = 1, 2


class NFTA_META(IntEnum):
    """Attributes of meta: enum nft_meta_attributes."""

    DREG, KEY, SREG = 1, 2, 3


class NFT_META(IntEnum):
    """What meta loads or sets: enum nft_meta_keys."""

    PROTOCOL, PRIORITY = 1, 2
    IIFNAME, OIFNAME = 6, 7
    NFTRACE = 12
    NFPROTO, L4PROTO = 15, 16


class NFTA_CT(IntEnum):
    """Attributes of ct: enum nft_ct_attributes."""

    DREG, KEY, DIRECTION, SREG = 1, 2, 3, 4


class NFT_CT(IntEnum):
    """What ct loads or sets: enum nft_ct_keys."""

    DIRECTION, STATUS, MARK, PROTO_SRC, PROTO_DST, SRC_IP, SRC_IP6 = 1, 2, 3, 11, 12, 19, 21


class IP_CT_DIR(IntEnum):
    """Directions of a flow: enum ip_conntrack_dir in linux/netfilter/nf_conntrack_tuple_common.h."""

    ORIGINAL, REPLY = 0, 1


IPS_DST_NAT = 1 << 5  # of a flow's status: enum ip_conntrack_status in linux/netfilter/nf_conntrack_common.h


class NFTA_SOCKET(IntEnum):
    """Attributes of socket: enum nft_socket_attributes."""

    KEY, DREG = 1, 2


NFT_SOCKET_TRANSPARENT = 0  # what socket loads: enum nft_socket_keys


class NFTA_NAT(IntEnum):
    """Attributes of nat: enum nft_nat_attributes."""

    TYPE, FAMILY, REG_ADDR_MIN, REG_PROTO_MIN = 1, 2, 3, 5


class NFT_NAT(IntEnum):
    """What nat translates: enum nft_nat_types."""

    SNAT, DNAT = 0, 1


class NFTA_FIB(IntEnum):
    """Attributes of fib: enum nft_fib_attributes."""

    DREG, RESULT, FLAGS = 1, 2, 3


NFT_FIB_RESULT_ADDRTYPE = 3  # what fib loads: enum nft_fib_result


class NFT_FIB_F(IntFlag):
    """What fib looks up, and for which interface: enum nft_fib_flags, with its prefix NFTA_FIB_F_."""

    DADDR, IIF = 0x2, 0x8


class NFTA_OBJREF(IntEnum):
    """Attributes of objref: enum nft_objref_attributes."""

    SET_SREG, SET_NAME = 3, 4


# Objects


class NFTA_OBJ(IntEnum):
    """Attributes of an object: enum nft_object_attributes."""

    NAME, TYPE, DATA = 2, 3, 4


NFT_OBJECT_LIMIT = 4  # a type of objects
NFTA_SET_OBJ_TYPE = 15  # of a map to objects: enum nft_set_attributes
NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_OBJREF = 3, 9  # of its elements: enum nft_set_elem_attributes
NFT_SET_ELEM_INTERVAL_END = 1  # the element ends an interval: enum nft_set_elem_flags


class NFTA_LIMIT(IntEnum):
    """Attributes of limit: enum nft_limit_attributes."""

    RATE, UNIT, BURST, TYPE, FLAGS = 1, 2, 3, 4, 5


NFT_LIMIT_PKTS = 0  # what limit counts: enum nft_limit_type
NFT_LIMIT_F_INV = 1  # limit matches what is above it: enum nft_limit_flags


# Notifications

NFTA_GEN_PROC_NAME = 3  # of the message that ends a commit: enum nft_gen_attributes


class NFTA_TRACE(IntEnum):
    """Attributes of a step of a traced packet: enum nft_trace_attributes."""

    TABLE, CHAIN, RULE_HANDLE, TYPE, VERDICT, ID, POLICY = 1, 2, 3, 4, 5, 6, 16


NFT_TRACETYPE_POLICY = 1  # the step is a chain's policy: enum nft_trace_types
