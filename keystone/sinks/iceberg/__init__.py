"""The lake as Apache Iceberg tables: what is committed, by whom, and in which order. pyiceberg is imported when it is needed."""
