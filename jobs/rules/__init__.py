"""What should happen? Pure: no Django, no database, no clock; `now` is a parameter."""
