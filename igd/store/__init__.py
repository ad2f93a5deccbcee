"""Storage that keeps leases over a restart."""
