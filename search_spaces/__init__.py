"""Schema and effective spec in, the space worth searching out. Knows no search algorithm and no model code."""
