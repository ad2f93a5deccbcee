"""The iptables backend: our chains in iptables-legacy."""
