"""Peers: other tools' own numbers of a case, got by running them."""
