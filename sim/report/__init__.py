"""What a run says: metrics, summaries, verdicts, tables, files."""
