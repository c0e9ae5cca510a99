"""From rows to batches: sources, tasks, templates with exact loss masks, cached tokens, schedule, collation and the ledger."""
