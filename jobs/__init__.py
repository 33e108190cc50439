"""What a person types: one command a file, imported when it is used."""
