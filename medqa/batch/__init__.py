"""Many pairs: a table or two folders of them, assessed by several processes or machines."""
