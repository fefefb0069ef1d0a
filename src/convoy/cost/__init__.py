"""What networks, machines and schedules cost."""
