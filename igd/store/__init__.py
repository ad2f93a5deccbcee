"""Where leases survive a restart."""
