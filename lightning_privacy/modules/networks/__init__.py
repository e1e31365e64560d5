"""Networks for classifiers: three small ones of our own, and how any other is built, loaded and read."""
