"""Sources of pairs: found from what the user typed, and read one pair at a time, whatever their layout."""
