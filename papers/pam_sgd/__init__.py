"""SplInterp's experiments E2 (MNIST) and E3 (LLM activations): PAM-SGD against gradient training, as published, as its code has it, and tuned."""
