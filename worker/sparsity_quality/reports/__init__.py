"""What the cells say: tables, verdicts, charts."""
