"""Data sets in, normalised arrays out: readers, checks, fingerprint, plan, preprocessing, sampling."""
