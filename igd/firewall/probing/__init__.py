"""Follows packets of our own through the operator's rules; changes none of them."""
