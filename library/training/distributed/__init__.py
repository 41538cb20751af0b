"""Several processes: gradient all-reduce, sharding by ZeRO and FSDP, and agreement between processes."""
