"""What learns, as it lies over the processes: whole in each of them, or a part in each (ZeRO, FSDP)."""
