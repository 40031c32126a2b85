"""What another package adds to raybrain: a decoder, a reader, a target, a metric; a module each."""
