"""Features of images by networks with published weights, and statistics of them."""
