"""From tasks to committed shards: in this process, or on a dask cluster."""
