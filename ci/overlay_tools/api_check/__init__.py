"""What the overlay needs of a release, and where a release mentions a base: read from syntax trees."""
