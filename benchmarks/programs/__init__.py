"""The same problem, written for each library as its own documentation would."""
