"""Where shards are extracted: in this process. Others (a dask cluster, SLURM ranks) would stand beside `local`."""
