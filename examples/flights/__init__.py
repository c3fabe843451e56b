"""An example on real data: the flights that left New York in January 2013."""
