"""Whether log, lake, index and dead letters agree, by minute and partition, while the stream runs: looks at them and changes nothing."""
