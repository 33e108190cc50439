"""What `forger check` looks at before GPU hours are spent: here, on the cluster, in real turns."""
