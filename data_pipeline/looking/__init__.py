"""Looking at a corpus: samples, statistics, checks, and a page that shows all of it."""
