"""One slide read: scores, lesions, files, pictures; and hard negatives out of slides that were read."""
