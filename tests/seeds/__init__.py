"""The cells of the five seed documents, written natively in each framework and read through multiparam."""
