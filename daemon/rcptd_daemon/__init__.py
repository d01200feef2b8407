"""The daemon and the command line: wires configuration, stores, engine and front ends together."""
