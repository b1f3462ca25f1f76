"""Competitors that no library has, written small and exactly: DifferNet, CutPaste and NSA."""
