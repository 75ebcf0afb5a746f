"""The log: partitions of records with offsets and append times. Embedded (one machine) or Kafka."""
