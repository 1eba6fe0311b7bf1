"""Take in what other tools wrote: configurations become cases, snapshots and traces measurements."""
