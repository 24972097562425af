"""Pairs: the table, what is indexed into it, the order in which it is read, and the batches made of it."""
