"""Everything that knows Ray Train and the cluster: worker groups, their jobs, their environment, their faults."""
