"""What each `pmm` command does; `cli/` only parses."""
