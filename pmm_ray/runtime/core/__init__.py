"""The small core of every stage: storage, tables, sessions, errors, events."""
