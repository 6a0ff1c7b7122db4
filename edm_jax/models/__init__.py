"""The U-Net of configs A-G: its vocabulary, its topology, and how it is built."""
