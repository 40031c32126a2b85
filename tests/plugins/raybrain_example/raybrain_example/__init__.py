"""What another package adds to raybrain: a decoder, a reader and a metric, a module each."""
