"""Asynchronous training: replicas at their own pace, over parameter servers.

shard.py         a server: some rows of the parameters, and what becomes of pushes
leases.py        who does which steps of the global order
coordinator.py   the actor that leases them, and knows where the shards are
client.py        a replica's end of all shards
replica.py       what a replica does around its strategy's program
whole.py         shards' parts as one state, and one state as shards' parts
fleet.py         the driver: starts, watches, restores, takes snapshots
fleet_log.py     the records of all replicas
"""
