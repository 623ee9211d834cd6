"""The version, alone, so that packaging can read it without importing anything heavy."""

__version__ = "0.1.0"
