"""Do the work of a survey: threads, clusters, resources, journal."""
