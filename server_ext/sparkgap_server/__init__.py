"""What runs in the cluster: the server command, the nursery beside each executor, ranks and model hosts."""
