"""What does the site serve besides the admin? Each view parses, calls one function and renders."""
