"""What a run will take, before it starts: memory by part, operations, hours, disk."""
