"""The verb `serve`: a saved head behind HTTP."""
