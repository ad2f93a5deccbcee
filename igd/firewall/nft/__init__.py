"""The table of nftables that is ours."""
