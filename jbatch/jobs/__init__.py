"""Jobs: a file of requests in, a file of results out, whatever happens in between."""
