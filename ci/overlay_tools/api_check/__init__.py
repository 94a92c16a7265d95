"""What the overlay needs of a release, and where a release decides by a base's name: read from syntax trees."""
