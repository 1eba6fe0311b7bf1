"""What strategies cost this machine's hosts beside operators and collectives, measured on trivial modules."""
