"""What every process that serves memory is made of: its clients, its shard, its bounds."""
