"""Our chains in iptables-legacy."""
