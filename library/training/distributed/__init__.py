"""Training with several processes: gradient all-reduce, sharding by ZeRO and FSDP, checks that processes agree."""
