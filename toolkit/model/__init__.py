"""The frozen base and what changes it: adapters read and checked, stacks of them, their algebra."""
