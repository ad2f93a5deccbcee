"""The port control protocols on UDP port 5351: NAT-PMP (RFC 6886) and PCP (RFC 6887)."""
