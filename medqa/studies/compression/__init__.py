"""The compression study: which ratio of which codec leaves which images fit for diagnosis."""
