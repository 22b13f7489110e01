"""What the site asks of Sphinx that Sphinx does not have."""
