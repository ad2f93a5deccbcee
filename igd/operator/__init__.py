"""Status and mappings for the operator."""
