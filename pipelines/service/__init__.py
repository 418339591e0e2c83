"""A service that scores slides by their deadlines, after S3DNN (Zhou et al. 2018). Commands enter it alone."""
