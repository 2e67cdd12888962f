"""What a person may ask of the city: a copy of what is stored about them, and the removal of what may go."""
