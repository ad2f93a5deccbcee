"""What the machine tells us: values, never decisions."""
