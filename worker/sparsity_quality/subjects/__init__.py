"""What is measured: models, and the attention that they read with."""
