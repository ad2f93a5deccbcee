"""The nftables backend, and the nftables tables of other instances."""
