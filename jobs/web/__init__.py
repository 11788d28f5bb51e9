"""What does the site answer beside the admin? Doors: parse, call one function, render."""
