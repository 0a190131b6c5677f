"""One contract, run over every face."""
