"""Expert parallelism: experts divided over ranks, tokens sent to them and their outputs back."""
