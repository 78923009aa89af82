"""Does sentence-level reward modelling beat response- and token-level? `compare` trains whole models, `frozen` heads alone."""
