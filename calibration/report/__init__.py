"""`calibrate report`: pictures of a calibration, as one offline HTML page and as PNG files."""
