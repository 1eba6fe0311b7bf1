"""The layouts of one run side by side: memory, time, bytes sent, loss; which wins where."""
