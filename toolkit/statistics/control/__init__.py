"""Is today's run still from the same process: control charts, and several metrics at once."""
