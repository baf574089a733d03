"""The cohort engine: discover cases, plan, run them on Dask, keep a ledger, summarise."""
