"""Which source makes runs differ: variance components of crossed and nested designs."""
