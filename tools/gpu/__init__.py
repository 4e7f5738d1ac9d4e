"""One prepared run on a machine with a GPU: sections with a time limit each, a table, and a file of figures."""
